"""What a patient's slices make together: stacks by geometry, and what is odd about a series.

A series may mix orientations, matrices or thicknesses, repeat places (phases, a second sending
under new names) and miss slices. Its slices are told apart by where they lie, never by number or
name. Slices are used one by one, so that a gap or a tilt is reported and excludes nothing; of
several images of one place, one is taken.
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from site_agent.intake.dicom import DicomSlice
from site_agent.intake.nifti import NiftiVolume
from site_agent.intake.reasons import Finding, IntakeReport, SkipReason

Source = DicomSlice | NiftiVolume

SAME_PLACE_MM = 0.01
TILT_DEGREES = 3.0
"""Smallest angle of a slice's normal with the body axis that is told as a tilted gantry."""
GAP = 1.5
"""A distance between neighbours above so many times the stack's median is a gap."""


@dataclass(frozen=True)
class Candidate:
    """A slice whose pixels have not been read: of a DICOM file, or number ``index`` of a volume."""

    source: Source
    index: int
    thickness_mm: float | None
    order: tuple[str, float, str]  # series, position, instance


def told_apart(candidates: list[Candidate], report: IntakeReport) -> list[Candidate]:
    """The candidates of one patient but those of a place that its series has had.

    ``report`` hears of those, and of what is odd about each series.
    """
    taken: list[Candidate] = []
    series: dict[str, dict[tuple[object, ...], list[Candidate]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for item in candidates:
        if isinstance(item.source, DicomSlice):
            series[item.order[0]][_stack(item.source)].append(item)
        else:
            taken.append(item)
    for stacks in series.values():
        kept = [_one_a_place(members, report) for members in stacks.values()]
        if len(kept) > 1:
            report.findings[Finding.MIXED_GEOMETRY] += 1
        if any(_has_gaps(members) for members in kept):
            report.findings[Finding.GAPS] += 1
        if any(_is_tilted(members[0]) for members in kept):
            report.findings[Finding.TILTED_GANTRY] += 1
        taken += [item for members in kept for item in members]
    return taken


def _stack(source: DicomSlice) -> tuple[object, ...]:
    return (
        *(round(cosine, 2) + 0.0 for cosine in source.orientation),
        *(round(edge, 3) for edge in source.spacing_mm),
        *source.shape,
        None if source.thickness_mm is None else round(source.thickness_mm, 2),
    )


def _one_a_place(members: list[Candidate], report: IntakeReport) -> list[Candidate]:
    kept: list[Candidate] = []
    for item in sorted(members, key=lambda item: item.order[1:]):
        if kept and item.order[1] - kept[-1].order[1] < SAME_PLACE_MM:
            report.skip(SkipReason.SAME_PLACE)
        else:
            kept.append(item)
    return kept


def _has_gaps(members: list[Candidate]) -> bool:
    steps = [b.order[1] - a.order[1] for a, b in pairwise(members)]
    return len(steps) > 1 and max(steps) > GAP * median(steps)


def _is_tilted(item: Candidate) -> bool:
    assert isinstance(item.source, DicomSlice)
    return item.source.plane.normal[2] < math.cos(math.radians(TILT_DEGREES))
