"""Which slices of a patient are kept, and the reading of their pixels.

CT: choose by header alone, then read what was chosen. MR: a series is measured as a whole first,
for its scale and for the slices that show anatomy; then as for CT.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.tasks.settings import Modality
from site_agent.intake.dicom import DicomSlice
from site_agent.intake.geometry import THIN_MM, evenly_spaced
from site_agent.intake.mr import Scale, sampling_step, scale_of
from site_agent.intake.nifti import NiftiVolume
from site_agent.intake.pairing import Pair, couples, kind_of, worse_side
from site_agent.intake.pool import Answer, ReaderPool
from site_agent.intake.reasons import IntakeReport, Skipped, SkipReason
from site_agent.intake.series import Candidate, Source, told_apart
from site_agent.intake.slices import PatientSlices, Slice, SlicePair
from site_agent.intake.strictness import as_fields

_BATCH = 4
_ANSWER_BYTES = 64 * 2**20  # of one answer's pixels: more slices of a volume take several


@dataclass(frozen=True)
class _Request:
    """Slices of one file that are read in one go."""

    source: Source
    members: tuple[Candidate, ...]
    modality: Modality
    step: int = 1
    full: float | None = None

    def job(self) -> dict[str, Any]:
        """For a reader."""
        return {
            "ask": "pixels",
            "path": str(self.source.path),
            "source": as_fields(self.source),
            "chosen": [item.index for item in self.members],
            "modality": self.modality,
            "step": self.step,
            "full": self.full,
        }

    def planes(self, answer: Answer) -> NDArray[Any]:
        """The pixels (n, rows, columns). Raises ``Skipped`` where there are none, or others."""
        if answer.code is not None:
            raise Skipped(answer.code)
        edges = [len(range(0, edge, self.step)) for edge in self.source.shape]
        if answer.array is None or list(answer.array.shape) != [len(self.members), *edges]:
            raise Skipped(SkipReason.CRASHED)
        return answer.array


def hounsfield_of(
    slices: Sequence[DicomSlice], *, pool: ReaderPool
) -> Iterator[NDArray[np.int16] | None]:
    """The pixels (rows, columns) of CT slices in Hounsfield units; None of what cannot be read."""
    requests = [
        _Request(one, (Candidate(one, 0, one.thickness_mm, ("", 0.0, "")),), "CT") for one in slices
    ]
    answers = pool.answers((one.job() for one in requests), batch=_BATCH)
    for request, answer in zip(requests, answers, strict=True):
        try:
            yield request.planes(answer)[0]
        except Skipped:
            yield None


def patients_slices(
    candidates: Mapping[str, list[Candidate]],
    *,
    modality: Modality,
    at_most: int,
    report: IntakeReport,
    pool: ReaderPool,
) -> Iterator[PatientSlices]:
    """Each patient's slices, sorted by pseudonym: at most ``at_most``, evenly spaced.

    Those of at most 5 mm where there are any. What cannot be read is counted in ``report`` and left
    out. Of CT, the real pairs among them too, as many at most.
    """
    eligible = {name: _eligible(candidates[name], report) for name in sorted(candidates)}
    if modality == "MR":
        for name, items in eligible.items():
            shown, scales = _measured(items, report, pool)
            requests = _requests(_chosen(shown, at_most, report), modality, scales=scales)
            answers = pool.answers((one.job() for one in requests), batch=_BATCH)
            yield PatientSlices(name, _slices(requests, answers, report))
        return
    plans = [
        (name, _requests(_chosen(items, at_most, report), modality), _couples(items, at_most))
        for name, items in eligible.items()
    ]
    # One stream for all patients, so that no reader waits for a patient's end.
    answers = pool.answers(
        (
            one.job()
            for _, plan, coupled in plans
            for one in (*plan, *(side for couple in coupled for side in _sides(couple)))
        ),
        batch=_BATCH,
    )
    for name, plan, coupled in plans:
        slices = _slices(plan, answers, report)
        pairs = [pair for couple in coupled for pair in _slice_pairs(couple, answers)]
        yield PatientSlices(name, slices, pairs)


def _eligible(candidates: list[Candidate], report: IntakeReport) -> list[Candidate]:
    apart = told_apart(candidates, report)
    thin = [item for item in apart if item.thickness_mm and item.thickness_mm <= THIN_MM]
    eligible = sorted(thin or apart, key=lambda item: item.order)
    report.not_needed += len(apart) - len(eligible)
    return eligible


def _chosen(eligible: list[Candidate], at_most: int, report: IntakeReport) -> list[Candidate]:
    chosen = [eligible[index] for index in evenly_spaced(len(eligible), at_most=at_most)]
    report.not_needed += len(eligible) - len(chosen)
    return chosen


def _slices(
    requests: list[_Request], answers: Iterator[Answer], report: IntakeReport
) -> list[Slice]:
    slices: list[Slice] = []
    failed: set[Source] = set()
    for request, answer in zip(requests, answers, strict=False):
        source = request.source
        try:
            planes = request.planes(answer)
        except Skipped as skipped:
            if source not in failed:
                report.skip(skipped.reason)
            failed.add(source)
            continue
        slices += [Slice(plane, source.spacing_mm, source.thickness_mm) for plane in planes]
    return slices


def _couples(eligible: list[Candidate], at_most: int) -> list[list[Pair]]:
    """A patient's couples of series, together of at most ``at_most`` pairs."""
    found = couples([item.source for item in eligible if isinstance(item.source, DicomSlice)])
    numbered = [(number, pair) for number, couple in enumerate(found) for pair in couple]
    kept = [numbered[place] for place in evenly_spaced(len(numbered), at_most=at_most)]
    return [[pair for number, pair in kept if number == couple] for couple in range(len(found))]


def _sides(couple: list[Pair]) -> Iterator[_Request]:
    """What is read of a couple: one side of a pair after the other."""
    for pair in couple:
        for one in pair:
            order = (one.series, one.position_mm, one.instance)
            yield _Request(one, (Candidate(one, one.number, one.thickness_mm, order),), "CT")


def _slice_pairs(couple: list[Pair], answers: Iterator[Answer]) -> list[SlicePair]:
    """A couple's pairs whose sides can both be read, once it is known which is which.

    What cannot be read is counted where it is read for itself.
    """
    sides: list[Slice | None] = []
    for request, answer in zip(_sides(couple), answers, strict=False):
        try:
            (plane,) = request.planes(answer)
        except Skipped:
            sides.append(None)
            continue
        sides.append(Slice(plane, request.source.spacing_mm, request.source.thickness_mm))
    read = [
        (a, b)
        for a, b in zip(sides[::2], sides[1::2], strict=True)
        if a is not None and b is not None
    ]
    worse = worse_side([(a.pixels, b.pixels) for a, b in read])
    if worse is None:
        return []
    kind = kind_of(couple[0][0].acquisition, couple[0][1].acquisition)
    return [SlicePair(kind, lq=pair[worse], hq=pair[1 - worse]) for pair in read]


def _measured(
    eligible: list[Candidate], report: IntakeReport, pool: ReaderPool
) -> tuple[list[Candidate], dict[str, Scale]]:
    """The slices of MR series that show anatomy, and each series' scale."""
    shown: list[Candidate] = []
    scales: dict[str, Scale] = {}
    for series, members in groupby(eligible, key=lambda item: item.order[0]):
        requests = _requests(members, "MR", sampled=True)
        answers = pool.answers((one.job() for one in requests), batch=_BATCH)
        samples: list[tuple[Candidate, NDArray[np.float32]]] = []
        for request, answer in zip(requests, answers, strict=True):
            try:
                samples += zip(request.members, request.planes(answer), strict=True)
            except Skipped as skipped:
                report.skip(skipped.reason)
        if not samples:
            continue
        try:
            scale = scale_of([plane for _, plane in samples])
        except Skipped as skipped:
            report.skip(skipped.reason)
            continue
        scales[series] = scale
        for item, plane in samples:
            if scale.shows_anatomy(plane):
                shown.append(item)
            else:
                report.skip(SkipReason.MOSTLY_AIR)
    return shown, scales


def _requests(
    candidates: Iterable[Candidate],
    modality: Modality,
    *,
    sampled: bool = False,
    scales: Mapping[str, Scale] | None = None,
) -> list[_Request]:
    """Grouped, in order, so that a volume is read once for all its slices."""
    sources: dict[Source, list[Candidate]] = defaultdict(list)
    for item in candidates:
        sources[item.source].append(item)
    requests = []
    for source, members in sources.items():
        step = sampling_step(*source.shape) if sampled else 1
        full = scales[members[0].order[0]].full if scales else None
        size = max(1, 4 * (source.shape[0] // step) * (source.shape[1] // step))
        several = max(1, _ANSWER_BYTES // size) if isinstance(source, NiftiVolume) else 1
        for begin in range(0, len(members), several):
            some = tuple(members[begin : begin + several])
            requests.append(_Request(source, some, modality, step=step, full=full))
    return requests
