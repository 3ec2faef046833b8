"""Folders of DICOM or NIfTI files into slices of one modality, by patient.

1. List the files, in a fixed order.
2. Read each one's header; skip what is not an axial image of the modality, with a code.
3. Group by patient (PatientID, else the folder), then by series, ordered along the normal.
4. Patient by patient, read the pixels of the slices that are kept.

A file that cannot be read stops nothing, and no text from inside a file is ever repeated.
"""

import hashlib
import hmac
import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.tasks.settings import Modality
from site_agent.intake import dicom, nifti
from site_agent.intake.geometry import evenly_spaced
from site_agent.intake.mr import names_sequence
from site_agent.intake.reasons import IntakeReport, Skipped, SkipReason
from site_agent.intake.selection import Candidate, read_patient
from site_agent.intake.slices import PatientSlices
from site_agent.intake.windowing import windowed

EVALUATED_SLICES = 8
KEPT_SLICES = 32


class IntakeError(ValueError):
    """A folder that cannot be read, or holds no usable image; the text names the fix."""


@dataclass(frozen=True)
class _Wanted:
    """What a site offers: a modality and, of MR, the sequences whose name has a word so begun."""

    modality: Modality
    sequence: str | None = None


def read_folder(
    path: Path,
    *,
    pseudonym_key: bytes,
    slices_per_patient: int,
    report: IntakeReport,
    modality: Modality,
    sequence: str | None = None,
) -> Iterator[PatientSlices]:
    """Yields a folder's patients, sorted by pseudonym, at most ``slices_per_patient`` of each.

    A pseudonym is an HMAC under ``pseudonym_key``. Slices of at most 5 mm are preferred where a
    patient has any. ``sequence`` takes the MR series alone of whose name a word begins with it, in
    any case: of a volume's file name, of a DICOM series' ProtocolName or SeriesDescription.
    ``report`` counts what was skipped, and why. Raises ``IntakeError`` where the folder itself
    cannot be read.
    """
    wanted = _Wanted(modality, sequence)
    candidates: dict[str, list[Candidate]] = defaultdict(list)
    files = list(image_files(path, report))
    report.files = len(files)
    seen: set[str] = set()
    for done, file in enumerate(files, start=1):
        try:
            patient, found = _header(file, path, seen, wanted)
            candidates[_pseudonym(pseudonym_key, patient)] += found
        except Skipped as skipped:
            report.skip(skipped.reason)
        report.progress("headers", done, len(files))
    for done, pseudonym in enumerate(sorted(candidates), start=1):
        # Popped, so that a large folder's headers go as its pixels come.
        patient_slices = read_patient(
            candidates.pop(pseudonym),
            modality=modality,
            at_most=slices_per_patient,
            report=report,
        )
        if patient_slices:
            report.patients += 1
            report.slices += len(patient_slices)
            yield PatientSlices(pseudonym=pseudonym, slices=patient_slices)
        report.progress("pixels", done, done + len(candidates))


def evaluation_images(
    folder: Path,
    *,
    size_px: int,
    low: float,
    high: float,
    modality: Modality,
    sequence: str | None = None,
) -> list[NDArray[np.float32]]:
    """The images of a folder, one (n, 1, size_px, size_px) array in [0, 1] a patient.

    As ``Cohort.images`` gives them, without a cohort. Raises ``IntakeError`` where there are none.
    """
    report = IntakeReport()
    images = []
    for patient in read_folder(
        folder,
        pseudonym_key=b"",
        slices_per_patient=KEPT_SLICES,
        report=report,
        modality=modality,
        sequence=sequence,
    ):
        chosen = evenly_spaced(len(patient.slices), at_most=EVALUATED_SLICES)
        slices = [(patient.slices[n].pixels, patient.slices[n].spacing_mm) for n in chosen]
        images.append(windowed(slices, size_px=size_px, low=low, high=high))
    if not images:
        raise IntakeError(f"{folder}: no axial {modality} image could be used ({report.summary()})")
    return images


def image_files(path: Path, report: IntakeReport) -> Iterator[Path]:
    """Files under ``path``, sorted, links followed once, hidden ones left out.

    Raises ``IntakeError`` where it is no folder, or one that may not be read.
    """
    if not path.is_dir():
        raise IntakeError(f"{path}: is not a folder")
    if not os.access(path, os.R_OK | os.X_OK):
        raise IntakeError(f"{path}: may not be read; check its permissions")
    visited: set[tuple[int, int]] = set()
    listed = 0
    for folder, folders, names in os.walk(path, followlinks=True):
        information = Path(folder).stat()
        if (information.st_dev, information.st_ino) in visited:
            folders.clear()
            continue
        visited.add((information.st_dev, information.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                listed += 1
                report.progress("list", listed, 0)
                yield Path(folder, name)


def _header(file: Path, root: Path, seen: set[str], wanted: _Wanted) -> tuple[str, list[Candidate]]:
    """The patient (not yet a pseudonym) and the slices of one file. Raises ``Skipped``."""
    try:
        # Opening a pipe or a device could block for ever.
        if not stat.S_ISREG(file.stat().st_mode):
            raise Skipped(SkipReason.NOT_AN_IMAGE)
        is_dicom = dicom.is_dicom(file)
    except OSError:
        raise Skipped(SkipReason.UNREADABLE) from None
    if is_dicom:
        return _dicom_header(file, root, seen, wanted)
    if file.name.lower().endswith(nifti.SUFFIXES):
        stem = file.name.lower().removesuffix(".gz").removesuffix(".nii")
        if wanted.sequence is not None and not names_sequence(stem, wanted.sequence):
            raise Skipped(SkipReason.OTHER_SEQUENCE)
        volume = nifti.read_header(file)
        series = str(file.relative_to(root))
        return _folder_patient(file, root), [
            Candidate(volume, index, volume.thickness_mm, (series, float(index), ""))
            for index in range(volume.slices)
        ]
    raise Skipped(SkipReason.NOT_AN_IMAGE)


def _dicom_header(
    file: Path, root: Path, seen: set[str], wanted: _Wanted
) -> tuple[str, list[Candidate]]:
    header = dicom.read_header(file, modality=wanted.modality, sequence=wanted.sequence)
    if header.instance:
        if header.instance in seen:
            raise Skipped(SkipReason.DUPLICATE)
        seen.add(header.instance)
    order = (header.series, header.position_mm, str(file))
    candidate = Candidate(header, 0, header.thickness_mm, order)
    if header.patient_id is not None:
        return f"id:{header.patient_id}", [candidate]
    return _folder_patient(file, root), [candidate]


def _folder_patient(file: Path, root: Path) -> str:
    """The patient by the first folder below ``root``: never less than all of one person's files.

    A volume that lies in ``root`` itself is a patient of its own; a DICOM file there is not.
    """
    parts = file.relative_to(root).parts
    if len(parts) > 1:
        return f"folder:{parts[0]}"
    return f"file:{file.name}" if file.name.lower().endswith(nifti.SUFFIXES) else "folder:"


def _pseudonym(key: bytes, patient: str) -> str:
    digest = hmac.new(key, patient.encode("utf-8", "surrogateescape"), hashlib.sha256)
    return digest.hexdigest()[:32]
