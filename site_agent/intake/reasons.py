"""Why a file was not taken in: codes and counts, never a text that came out of the file."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from site_agent.intake.inventory import Inventory


class SkipReason(StrEnum):
    """One code a skipped file, or a skipped slice of a volume."""

    NOT_AN_IMAGE = "not-an-image"  # neither DICOM nor NIfTI, or a DICOM directory
    UNREADABLE = "unreadable"  # damaged, or the system will not let us read it
    TOO_LARGE = "too-large"  # beyond what a slice or volume can be
    UNSUPPORTED_SYNTAX = "unsupported-syntax"  # not on the list of syntaxes, or without decoder
    UNSUPPORTED_CLASS = "unsupported-class"  # a DICOM object other than a CT or MR image
    SECONDARY_CAPTURE = "secondary-capture"  # a screen capture: text in the pixels, no units
    NOT_CT = "not-ct"  # another modality, or a volume without air at -1000 HU
    NOT_MR = "not-mr"  # another modality, or negative signal, as in Hounsfield units or phase
    OTHER_SEQUENCE = "other-sequence"  # an MR series whose name is not the site's `sequence`
    NO_SIGNAL = "no-signal"  # an MR series in which nothing stands out from the background
    MOSTLY_AIR = "mostly-air"  # an MR slice at the end of the anatomy; one count a slice
    NOT_GREYSCALE = "not-greyscale"  # colour, palette: screen captures, dose reports
    MULTI_FRAME = "multi-frame"  # several frames in an object that has no place for theirs
    LOCALISER = "localiser"
    BURNED_IN = "burned-in"  # text in the pixels may name the patient
    NOT_AXIAL = "not-axial"  # coronal, sagittal, or tilted beyond a gantry
    NO_GEOMETRY = "no-geometry"  # position, orientation or spacing absent or impossible
    NOT_HOUNSFIELD = "not-hounsfield"  # no rescale to Hounsfield units
    TRUNCATED = "truncated"  # fewer pixels than the header promises
    UNDECODABLE = "undecodable"  # pixels could not be decoded
    DUPLICATE = "duplicate"  # the same image again
    SAME_PLACE = "same-place"  # another image of a series where it has one already
    NOT_A_VOLUME = "not-a-volume"  # NIfTI with other than three dimensions
    CHANGED = "changed"  # the file changed while it was indexed
    TOO_SLOW = "too-slow"  # above the time a file may take
    TOO_MUCH_MEMORY = "too-much-memory"  # above the memory a file may take
    CRASHED = "crashed"  # the process that read it ended, or answered nonsense


LIMITS = frozenset({SkipReason.TOO_SLOW, SkipReason.TOO_MUCH_MEMORY, SkipReason.CRASHED})
"""Codes that say as much about the machine's day as about the file: tried again at the next run."""


class Finding(StrEnum):
    """What is odd about a series whose slices are taken all the same; one count a series."""

    GAPS = "gaps"  # slices are missing between its first and its last
    TILTED_GANTRY = "tilted-gantry"  # its normal is off the body axis
    MIXED_GEOMETRY = "mixed-geometry"  # several orientations, matrices, pixel sizes or thicknesses


class Skipped(Exception):  # noqa: N818
    """A file that is not taken in, with its reason and nothing else."""

    def __init__(self, reason: SkipReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass
class IntakeReport:
    """What an intake saw: filled while it runs.

    ``on_progress`` hears ("list" | "headers" | "pixels", done, total); total is 0 while unknown.
    """

    on_progress: Callable[[str, int, int], None] | None = None
    files: int = 0
    patients: int = 0
    slices: int = 0
    not_needed: int = 0  # good slices beyond the number kept of a patient, or thicker than others
    remembered: int = 0  # files that an earlier, interrupted or complete, index had read
    skipped: Counter[SkipReason] = field(default_factory=Counter)
    findings: Counter[Finding] = field(default_factory=Counter)
    pairs: Counter[str] = field(default_factory=Counter)  # real ones, by kind
    paired_patients: Counter[str] = field(default_factory=Counter)  # who have some, by kind
    inventory: "Inventory | None" = None  # what the usable images are like

    def skip(self, reason: SkipReason) -> None:
        """Counts a file that was not taken in."""
        self.skipped[reason] += 1

    def progress(self, stage: str, done: int, total: int) -> None:
        """Tells the listener, if there is one."""
        if self.on_progress is not None:
            self.on_progress(stage, done, total)

    def summary(self) -> str:
        """One line: what was taken and what was not, by code."""
        reasons = ", ".join(
            f"{count} {reason.value}" for reason, count in sorted(self.skipped.items())
        )
        findings = ", ".join(
            f"{kind.value}: {count}" for kind, count in sorted(self.findings.items())
        )
        return (
            f"{self.patients} patients, {self.slices} slices from {self.files} files; "
            f"skipped: {reasons or 'none'}"
            + (f"; series with {findings}" if findings else "")
            + (f"; {self.paired()}" if self.pairs else "")
        )

    def paired(self) -> str:
        """How many patients have real pairs, by kind."""
        kinds = ", ".join(
            f"{self.paired_patients[kind]} patients have {count} of {kind}"
            for kind, count in sorted(self.pairs.items())
        )
        return f"real pairs: {kinds or 'none'}"

    def as_json(self) -> dict[str, object]:
        """The counts, for machines."""
        return {
            "files": self.files,
            "patients": self.patients,
            "slices": self.slices,
            "not_needed": self.not_needed,
            "remembered": self.remembered,
            "skipped": {reason.value: count for reason, count in sorted(self.skipped.items())},
            "findings": {kind.value: count for kind, count in sorted(self.findings.items())},
            "pairs": dict(sorted(self.pairs.items())),
            "paired_patients": dict(sorted(self.paired_patients.items())),
        }
