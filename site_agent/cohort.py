"""The cohort: a site's slices as one memory-mapped file, grouped by patient.

Folder format: ``index.json`` names ``slices-<token>.i16``, in which the slices lie one after the
other, little-endian int16, each at its native size: Hounsfield units of CT, of MR thousandths of
the series' 99.5th percentile. A build writes a new data file
and then replaces the index: readers see the old cohort or the new one, after a crash too. The index
holds pseudonyms, sizes and spacings: no identifier, no path, no date. Real pairs, where there are
some, lie behind the slices: of each its LQ, then its HQ, which are of one size.
"""

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryFile
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from shared.durable import sync_folder, write_durably
from shared.frozen import Frozen, canonical_json
from shared.tasks.settings import Modality
from site_agent.intake.geometry import evenly_spaced
from site_agent.intake.pairing import PairKind
from site_agent.intake.slices import PatientSlices, Slice
from site_agent.intake.windowing import windowed
from site_agent.uncached import UncachedFile

INDEX_FILE = "index.json"
MAX_SLICES_PER_PATIENT = 8

_DIGESTED = 2**20  # voxels at a time


class CohortError(ValueError):
    """A cohort that cannot be opened or built; the text names the fix."""


class PairColumns(Frozen):
    """Real pairs: a list entry a pair, in the order of ``patients``."""

    kind: list[PairKind]
    patient: list[int]
    rows: list[int]
    columns: list[int]
    row_mm: list[float]
    column_mm: list[float]
    thickness_mm: list[float | None]


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
    pairs: PairColumns | None = Field(None, exclude_if=lambda value: value is None)


@dataclass(frozen=True, eq=False)
class Cohort:
    """An open cohort; its pixels stay on the disk until they are asked for."""

    index: CohortIndex
    _voxels: NDArray[np.int16]
    _begins: NDArray[np.int64]  # where each slice begins
    _partners: NDArray[np.int64] | None = None  # of a cohort of pairs, where each one's LQ begins

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
        for place in range(0, len(self._voxels), _DIGESTED):
            digest.update(self._voxels[place : place + _DIGESTED].tobytes())
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
        are counted, the first. Of a cohort of pairs they are (n, 2, ...): HQ, and the real LQ.
        """
        images = []
        grouped = groupby(range(self.slices), key=self.index.patient.__getitem__)
        for _, members in islice(grouped, patients):
            numbers = list(members)
            chosen = evenly_spaced(len(numbers), at_most=max_slices_per_patient)
            sides = (self._begins,) if self._partners is None else (self._begins, self._partners)
            shown = [
                windowed(
                    [self._slice(numbers[place], begins) for place in chosen],
                    size_px=size_px,
                    low=low,
                    high=high,
                )
                for begins in sides
            ]
            images.append(np.concatenate(shown, axis=1))
        return images

    def stored(self, number: int) -> NDArray[np.int16]:
        """Slice ``number`` in stored units, (rows, columns), memory-mapped."""
        return self._slice(number, self._begins)[0]

    def _slice(
        self, number: int, begins: NDArray[np.int64]
    ) -> tuple[NDArray[np.int16], tuple[float, float]]:
        index = self.index
        rows, columns = index.rows[number], index.columns[number]
        begin = begins[number]
        pixels = self._voxels[begin : begin + rows * columns].reshape(rows, columns)
        return pixels, (index.row_mm[number], index.column_mm[number])


@lru_cache(maxsize=4)
def paired(cohort: Cohort, kind: PairKind) -> Cohort | None:
    """The cohort of the patients who have real pairs of a kind, and of those alone; None: nobody.

    Its slices are the pairs' HQ; its ``images`` bring their LQ too.
    """
    index, pairs = cohort.index, cohort.index.pairs
    numbers = [n for n, own in enumerate(pairs.kind) if own == kind] if pairs is not None else []
    if pairs is None or not numbers:
        return None
    sizes = np.multiply(pairs.rows, pairs.columns).astype(np.int64)
    before = cohort.slices and int(cohort._begins[-1]) + index.rows[-1] * index.columns[-1]
    lq = before + 2 * (np.cumsum(sizes) - sizes)
    places = {old: new for new, old in enumerate(dict.fromkeys(pairs.patient[n] for n in numbers))}
    return Cohort(
        index=CohortIndex(
            modality=index.modality,
            data=index.data,
            patients=[index.patients[old] for old in places],
            patient=[places[pairs.patient[n]] for n in numbers],
            rows=[pairs.rows[n] for n in numbers],
            columns=[pairs.columns[n] for n in numbers],
            row_mm=[pairs.row_mm[n] for n in numbers],
            column_mm=[pairs.column_mm[n] for n in numbers],
            thickness_mm=[pairs.thickness_mm[n] for n in numbers],
        ),
        _voxels=cohort._voxels,
        _begins=(lq + sizes)[numbers],
        _partners=lq[numbers],
    )


def subset(cohort: Cohort, places: tuple[int, ...]) -> Cohort | None:
    """The cohort of the patients at these places alone, ascending, without pairs; None: nobody."""
    if not places:
        return None
    index, new = cohort.index, {old: now for now, old in enumerate(places)}
    numbers = [n for n, patient in enumerate(index.patient) if patient in new]
    return Cohort(
        index=CohortIndex(
            modality=index.modality,
            data=index.data,
            patients=[index.patients[old] for old in places],
            patient=[new[index.patient[n]] for n in numbers],
            rows=[index.rows[n] for n in numbers],
            columns=[index.columns[n] for n in numbers],
            row_mm=[index.row_mm[n] for n in numbers],
            column_mm=[index.column_mm[n] for n in numbers],
            thickness_mm=[index.thickness_mm[n] for n in numbers],
        ),
        _voxels=cohort._voxels,
        _begins=cohort._begins[numbers],
        _partners=None if cohort._partners is None else cohort._partners[numbers],
    )


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
    consistent = (
        _columns_agree(index)
        and list(dict.fromkeys(index.patient)) == list(range(len(index.patients)))
        and index.patients == sorted(set(index.patients))
        and (
            index.pairs is None
            or (
                _columns_agree(index.pairs)
                and len(index.pairs.kind) == len(index.pairs.patient)
                and index.pairs.patient[0] >= 0
                and index.pairs.patient[-1] < len(index.patients)
            )
        )
    )
    if not consistent:
        raise CohortError(f"{folder}: its index is damaged; {remedy}")
    sizes = np.asarray(index.rows, np.int64) * np.asarray(index.columns, np.int64)
    paired_voxels = 0
    if index.pairs is not None:
        paired_voxels = 2 * int(np.dot(index.pairs.rows, index.pairs.columns))
    if size != 2 * (int(sizes.sum()) + paired_voxels):
        raise CohortError(f"{folder}: its slices are incomplete; {remedy}")
    voxels = np.memmap(folder / index.data, dtype="<i2", mode="r")
    return Cohort(index=index, _voxels=voxels, _begins=np.cumsum(sizes) - sizes)


def _columns_agree(columns: CohortIndex | PairColumns) -> bool:
    """Whether there are entries, of one number, of images that have a size, in patients' order."""
    lists = (
        *(columns.rows, columns.columns),
        *(columns.row_mm, columns.column_mm, columns.thickness_mm),
    )
    return (
        bool(columns.patient)
        and all(len(column) == len(columns.patient) for column in lists)
        and columns.patient == sorted(columns.patient)
        and min(*columns.rows, *columns.columns) > 0
        and min(*columns.row_mm, *columns.column_mm) > 0
    )


def _write_slices(
    part: Path, name: str, patients: Iterable[PatientSlices], modality: Modality
) -> CohortIndex:
    columns, paired_columns = _empty(_COLUMNS), _empty(("kind", *_COLUMNS))
    pseudonyms: list[str] = []
    # Pairs are few: they wait in a file of their own until all slices are written.
    with UncachedFile(part) as file, TemporaryFile(dir=part.parent) as behind:
        for patient in patients:
            for item in patient.slices:
                file.write(_bytes_of(item))
                _describe(columns, item, len(pseudonyms))
            for pair in patient.pairs:
                behind.write(_bytes_of(pair.lq))
                behind.write(_bytes_of(pair.hq))
                paired_columns["kind"].append(pair.kind)
                _describe(paired_columns, pair.hq, len(pseudonyms))
            pseudonyms.append(patient.pseudonym)
        behind.seek(0)
        copyfileobj(behind, file)
    if not pseudonyms:
        raise CohortError(f"no axial {modality} image could be used: no cohort was written")
    pairs = paired_columns if paired_columns["kind"] else None
    return CohortIndex.model_validate(
        {"modality": modality, "data": name, "patients": pseudonyms, **columns, "pairs": pairs}
    )


_COLUMNS = ("patient", "rows", "columns", "row_mm", "column_mm", "thickness_mm")


def _empty(names: tuple[str, ...]) -> dict[str, list[Any]]:
    return {name: [] for name in names}


def _describe(columns: dict[str, list[Any]], item: Slice, patient: int) -> None:
    values = (patient, *item.pixels.shape, *item.spacing_mm, item.thickness_mm)
    for name, value in zip(_COLUMNS, values, strict=True):
        columns[name].append(value)


def _bytes_of(item: Slice) -> memoryview:
    return np.ascontiguousarray(item.pixels, "<i2").data.cast("B")


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
