"""The cohort: a site's slices as one memory-mapped file, grouped by patient.

Folder format: ``index.json`` names ``slices-<token>.i16``, in which the slices lie one after the
other, little-endian int16, each at its native size: Hounsfield units of CT, of MR thousandths of
the series' 99.5th percentile. A build writes a new data file
and then replaces the index: readers see the old cohort or the new one, after a crash too. The index
holds pseudonyms, sizes and spacings: no identifier, no path, no date.
"""

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from shared.durable import sync_folder, write_durably
from shared.frozen import Frozen, canonical_json
from shared.tasks.settings import Modality
from site_agent.intake.geometry import evenly_spaced
from site_agent.intake.slices import PatientSlices
from site_agent.intake.windowing import windowed

INDEX_FILE = "index.json"
MAX_SLICES_PER_PATIENT = 8


class CohortError(ValueError):
    """A cohort that cannot be opened or built; the text names the fix."""


class CohortIndex(Frozen):
    """What ``index.json`` holds: a list entry a slice; ``patient`` is a place in ``patients``."""

    version: Literal[1] = 1
    modality: Modality = "CT"
    data: str = Field(pattern=r"^slices-[0-9a-f]{16}\.i16$")
    patients: list[str]
    patient: list[int]
    rows: list[int]
    columns: list[int]
    row_mm: list[float]
    column_mm: list[float]
    thickness_mm: list[float | None]


@dataclass(frozen=True, eq=False)
class Cohort:
    """An open cohort; its pixels stay on the disk until they are asked for."""

    index: CohortIndex
    _voxels: NDArray[np.int16]
    _offsets: NDArray[np.int64]  # where each slice begins, and where the last ends

    @property
    def patients(self) -> int:
        """How many patients there are."""
        return len(self.index.patients)

    @property
    def slices(self) -> int:
        """How many slices there are."""
        return len(self.index.patient)

    def digest(self) -> str:
        """SHA-256 of the content: the same wherever the same images were indexed.

        Under one pseudonym key and the same settings; the files' names and places do not matter.
        """
        content = canonical_json(self.index.model_dump(mode="json", exclude={"data"}))
        digest = hashlib.sha256(content)
        for number in range(self.slices):
            digest.update(self._voxels[self._offsets[number] : self._offsets[number + 1]].tobytes())
        return digest.hexdigest()

    def images(
        self,
        *,
        size_px: int,
        low: float,
        high: float,
        max_slices_per_patient: int = MAX_SLICES_PER_PATIENT,
        patients: int | None = None,
    ) -> list[NDArray[np.float32]]:
        """One (n, 1, size_px, size_px) array in [0, 1] a patient, sorted by pseudonym.

        ``low`` and ``high`` are the stored values that become 0 and 1 (a task's window). Of a
        patient with more slices than the maximum, evenly spaced ones; of ``patients``, where they
        are counted, the first.
        """
        images = []
        grouped = groupby(range(self.slices), key=self.index.patient.__getitem__)
        for _, members in islice(grouped, patients):
            numbers = list(members)
            chosen = evenly_spaced(len(numbers), at_most=max_slices_per_patient)
            images.append(
                windowed(
                    [self._slice(numbers[place]) for place in chosen],
                    size_px=size_px,
                    low=low,
                    high=high,
                )
            )
        return images

    def _slice(self, number: int) -> tuple[NDArray[np.int16], tuple[float, float]]:
        index = self.index
        begin, end = self._offsets[number], self._offsets[number + 1]
        pixels = self._voxels[begin:end].reshape(index.rows[number], index.columns[number])
        return pixels, (index.row_mm[number], index.column_mm[number])


def build_cohort(folder: Path, patients: Iterable[PatientSlices], *, modality: Modality) -> Cohort:
    """Replaces the cohort in ``folder`` by one of ``patients``, which come sorted by pseudonym.

    The old cohort stays until the new one is whole on the disk. Raises ``CohortError`` where there
    are no patients, or another build is running.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _only_builder(folder):
        for leftover in folder.glob("slices-*.part"):
            leftover.unlink()
        name = f"slices-{secrets.token_hex(8)}.i16"
        part = folder / f"{name}.part"
        try:
            index = _write_slices(part, name, patients, modality)
            part.replace(folder / name)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        sync_folder(folder)
        write_durably(folder / INDEX_FILE, index.model_dump_json().encode())
        for old in folder.glob("slices-*.i16"):
            if old.name != name:
                # A worker that still maps it keeps it until it lets go.
                old.unlink()
    return open_cohort(folder)


def open_cohort(folder: Path) -> Cohort:
    """Opens the cohort in ``folder`` without reading its pixels.

    Raises ``CohortError`` where there is none or it is damaged.
    """
    remedy = "run `site-agent index`"
    try:
        index = CohortIndex.model_validate_json((folder / INDEX_FILE).read_bytes())
        size = (folder / index.data).stat().st_size
    except FileNotFoundError:
        raise CohortError(f"{folder}: nothing is indexed yet; {remedy}") from None
    except OSError as error:
        raise CohortError(f"{folder}: cannot be read ({error.strerror}); {remedy}") from None
    except ValidationError:
        raise CohortError(f"{folder}: its index is damaged; {remedy}") from None
    columns = (index.rows, index.columns, index.row_mm, index.column_mm, index.thickness_mm)
    edges = np.asarray(index.rows, np.int64), np.asarray(index.columns, np.int64)
    consistent = (
        index.patient
        and all(len(column) == len(index.patient) for column in columns)
        and list(dict.fromkeys(index.patient)) == list(range(len(index.patients)))
        and index.patient == sorted(index.patient)
        and index.patients == sorted(set(index.patients))
        and min(edges[0].min(), edges[1].min()) > 0
        and min(min(index.row_mm), min(index.column_mm)) > 0
    )
    if not consistent:
        raise CohortError(f"{folder}: its index is damaged; {remedy}")
    offsets = np.concatenate([[0], np.cumsum(edges[0] * edges[1])])
    if size != 2 * offsets[-1]:
        raise CohortError(f"{folder}: its slices are incomplete; {remedy}")
    voxels = np.memmap(folder / index.data, dtype="<i2", mode="r")
    return Cohort(index=index, _voxels=voxels, _offsets=offsets)


def _write_slices(
    part: Path, name: str, patients: Iterable[PatientSlices], modality: Modality
) -> CohortIndex:
    columns: dict[str, list[float | None]] = {
        field: [] for field in ("patient", "rows", "columns", "row_mm", "column_mm", "thickness_mm")
    }
    pseudonyms: list[str] = []
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        for patient in patients:
            for item in patient.slices:
                file.write(np.ascontiguousarray(item.pixels, "<i2").tobytes())
                columns["patient"].append(len(pseudonyms))
                columns["rows"].append(item.pixels.shape[0])
                columns["columns"].append(item.pixels.shape[1])
                columns["row_mm"].append(item.spacing_mm[0])
                columns["column_mm"].append(item.spacing_mm[1])
                columns["thickness_mm"].append(item.thickness_mm)
            pseudonyms.append(patient.pseudonym)
        file.flush()
        os.fsync(file.fileno())
    if not pseudonyms:
        raise CohortError(f"no axial {modality} image could be used: no cohort was written")
    return CohortIndex.model_validate(
        {"modality": modality, "data": name, "patients": pseudonyms, **columns}
    )


@contextmanager
def _only_builder(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise CohortError(f"{folder}: another index is being built; wait for it") from None
    finally:
        os.close(descriptor)
