"""Folders of DICOM or NIfTI files into slices of one modality, by patient.

1. List the files, in a fixed order.
2. Have each one's header read by a reader, a process within limits, unless an earlier index has;
   skip what is not an axial image of the modality, with a code.
3. Group by patient (PatientID, else the folder), then by series, ordered along the normal.
4. Patient by patient, have the pixels of the slices read that are kept.

This process parses no image file. A file that cannot be read stops nothing, and no text from
inside a file is ever repeated.
"""

import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.tasks.settings import Modality
from site_agent.intake.dicom import DicomSlice
from site_agent.intake.geometry import evenly_spaced
from site_agent.intake.headers import FileHeader, HeaderMemory, ImageFile, file_header
from site_agent.intake.inventory import inventory_of
from site_agent.intake.pool import Job, ReaderError, ReaderPool
from site_agent.intake.reasons import IntakeReport, SkipReason
from site_agent.intake.selection import patients_slices
from site_agent.intake.series import Candidate
from site_agent.intake.slices import PatientSlices
from site_agent.intake.windowing import windowed

EVALUATED_SLICES = 8
KEPT_SLICES = 32
MAX_READERS = 4

_HEADER_BATCH = 32


class IntakeError(ValueError):
    """A folder that cannot be read, or holds no usable image; the text names the fix."""


def read_folder(
    path: Path,
    *,
    pseudonym_key: bytes,
    slices_per_patient: int,
    report: IntakeReport,
    modality: Modality,
    sequence: str | None = None,
    memory: Path | None = None,
    readers: int | None = None,
) -> Iterator[PatientSlices]:
    """Yields a folder's patients, sorted by pseudonym, at most ``slices_per_patient`` of each.

    A pseudonym is an HMAC under ``pseudonym_key``. Slices of at most 5 mm are preferred where a
    patient has any. ``sequence`` takes the MR series alone of whose name a word begins with it, in
    any case: of a volume's file name, of a DICOM series' ProtocolName or SeriesDescription.
    ``report`` counts what was skipped, and why. ``memory`` is a folder in which headers are
    remembered for the next time, ``readers`` the number of processes (else the cores, at most
    four). Raises ``IntakeError`` where the folder itself cannot be read.
    """
    files = list(_listed(path, report))
    report.files = len(files)
    asked = f"{modality} {sequence or ''}"
    count = readers or min(len(os.sched_getaffinity(0)), MAX_READERS)
    try:
        with ReaderPool(readers=count) as pool:
            with HeaderMemory(memory, key=pseudonym_key, asked=asked) as remembered:
                candidates = _candidates(
                    files, remembered, pool, report, pseudonym_key, modality, sequence
                )
                remembered.complete()
            report.inventory = inventory_of(candidates)
            patients = len(candidates)
            read = patients_slices(
                candidates,
                modality=modality,
                at_most=slices_per_patient,
                report=report,
                pool=pool,
            )
            for done, patient in enumerate(read, start=1):
                if patient.slices:
                    report.patients += 1
                    report.slices += len(patient.slices)
                    for kind in {pair.kind for pair in patient.pairs}:
                        report.paired_patients[kind] += 1
                    report.pairs.update(pair.kind for pair in patient.pairs)
                    yield patient
                report.progress("pixels", done, patients)
    except ReaderError as error:
        raise IntakeError(str(error)) from None


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


def ct_slices(path: Path, *, key: bytes, pool: ReaderPool) -> list[DicomSlice]:
    """The headers of a folder's axial CT slices, each once, identifiers hashed under ``key``.

    Raises ``IntakeError`` where there are none.
    """
    report = IntakeReport()
    files = list(_listed(path, report))
    report.files = len(files)
    images = [file for file in files if isinstance(file, ImageFile)]
    jobs = (_header_job(file, "CT", None) for file in images)
    answers = pool.answers(jobs, batch=_HEADER_BATCH)
    headers = [file_header(next(answers), file, key=key) for file in images]
    headers += [FileHeader(code=file) for file in files if isinstance(file, SkipReason)]
    candidates: dict[str, list[Candidate]] = defaultdict(list)
    seen: set[str] = set()
    for header in headers:
        _take(header, candidates, seen, report)
    found = [one.source for some in candidates.values() for one in some]
    slices = [one for one in found if isinstance(one, DicomSlice)]
    if not slices:
        raise IntakeError(f"{path}: no axial CT image could be used ({report.summary()})")
    return slices


def _listed(path: Path, report: IntakeReport) -> Iterator[ImageFile | SkipReason]:
    """The folder's files; a code for what is none, or cannot even be asked."""
    for file in image_files(path, report):
        try:
            information = file.stat()
        except OSError:
            yield SkipReason.UNREADABLE
            continue
        # Opening a pipe or a device could block for ever.
        if not stat.S_ISREG(information.st_mode):
            yield SkipReason.NOT_AN_IMAGE
        elif not os.access(file, os.R_OK):
            yield SkipReason.UNREADABLE
        else:
            yield ImageFile(file, path, information.st_size, information.st_mtime_ns)


def _candidates(
    files: list[ImageFile | SkipReason],
    memory: HeaderMemory,
    pool: ReaderPool,
    report: IntakeReport,
    key: bytes,
    modality: Modality,
    sequence: str | None,
) -> dict[str, list[Candidate]]:
    """The slices that could be read, by pseudonym."""
    unread = [isinstance(file, ImageFile) and memory.get(file) is None for file in files]
    answers = pool.answers(
        (
            _header_job(file, modality, sequence)
            for file, needed in zip(files, unread, strict=True)
            if needed and isinstance(file, ImageFile)
        ),
        batch=_HEADER_BATCH,
    )
    candidates: dict[str, list[Candidate]] = defaultdict(list)
    seen: set[str] = set()
    for done, (file, needed) in enumerate(zip(files, unread, strict=True), start=1):
        if isinstance(file, SkipReason):
            header = FileHeader(code=file)
        elif needed:
            header = file_header(next(answers), file, key=key)
            memory.put(file, header)
        else:
            header = memory.get(file) or FileHeader(code=SkipReason.CHANGED)
            report.remembered += 1
        _take(header, candidates, seen, report)
        report.progress("headers", done, len(files))
    return candidates


def _take(
    header: FileHeader,
    candidates: dict[str, list[Candidate]],
    seen: set[str],
    report: IntakeReport,
) -> None:
    """Adds what a file holds to its patient, or counts why not."""
    if header.code is not None:
        report.skip(header.code)
        return
    if header.volume is not None:
        volume = header.volume
        candidates[header.patient] += [
            Candidate(volume, index, volume.thickness_mm, (str(volume.path), float(index), ""))
            for index in range(volume.slices)
        ]
        return
    instance = header.slices[0].instance
    if instance and instance in seen:
        report.skip(SkipReason.DUPLICATE)
        return
    seen.add(instance)
    for code in header.refused:
        report.skip(code)
    candidates[header.patient] += [
        Candidate(
            one, 0, one.thickness_mm, (one.series, one.position_mm, f"{instance} {one.number:05}")
        )
        for one in header.slices
    ]


def _header_job(file: ImageFile, modality: Modality, sequence: str | None) -> Job:
    return {"ask": "header", "path": str(file.path), "modality": modality, "sequence": sequence}
