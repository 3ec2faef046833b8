"""Which slices of a patient are kept, and the reading of their pixels.

CT: choose by header alone, then read what was chosen. MR: a series is measured as a whole first,
for its scale and for the slices that show anatomy; then as for CT.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from shared.tasks.settings import Modality
from site_agent.intake import dicom, nifti
from site_agent.intake.geometry import THIN_MM, evenly_spaced
from site_agent.intake.mr import Scale, sampling_step, scale_of
from site_agent.intake.reasons import IntakeReport, Skipped, SkipReason
from site_agent.intake.slices import Slice

Source = dicom.DicomSlice | nifti.NiftiVolume


@dataclass(frozen=True)
class Candidate:
    """A slice whose pixels have not been read: of a DICOM file, or number ``index`` of a volume."""

    source: Source
    index: int
    thickness_mm: float | None
    order: tuple[str, float, str]  # series, position, file


def read_patient(
    candidates: list[Candidate], *, modality: Modality, at_most: int, report: IntakeReport
) -> list[Slice]:
    """Reads at most ``at_most`` of a patient's slices, evenly spaced.

    Those of at most 5 mm where there are any. What cannot be read is counted in ``report`` and left
    out.
    """
    thin = [item for item in candidates if item.thickness_mm and item.thickness_mm <= THIN_MM]
    eligible = sorted(thin or candidates, key=lambda item: item.order)
    report.not_needed += len(candidates) - len(eligible)
    scales: dict[str, Scale] = {}
    if modality == "MR":
        eligible, scales = _measured(eligible, report)
    chosen = [eligible[index] for index in evenly_spaced(len(eligible), at_most=at_most)]
    report.not_needed += len(eligible) - len(chosen)
    slices: list[Slice] = []
    for source, members in _by_source(chosen).items():
        scale = scales[members[0].order[0]] if modality == "MR" else None
        try:
            planes = _pixels(source, [item.index for item in members], scale)
        except Skipped as skipped:
            report.skip(skipped.reason)
            continue
        slices += [Slice(pixels, source.spacing_mm, source.thickness_mm) for pixels in planes]
    return slices


def _measured(
    eligible: list[Candidate], report: IntakeReport
) -> tuple[list[Candidate], dict[str, Scale]]:
    """The slices of MR series that show anatomy, and each series' scale."""
    shown: list[Candidate] = []
    scales: dict[str, Scale] = {}
    for series, members in groupby(eligible, key=lambda item: item.order[0]):
        samples: list[tuple[Candidate, NDArray[np.float32]]] = []
        for source, items in _by_source(members).items():
            try:
                planes = _sampled(source, [item.index for item in items])
                samples += zip(items, planes, strict=True)
            except Skipped as skipped:
                report.skip(skipped.reason)
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


def _by_source(candidates: Iterable[Candidate]) -> dict[Source, list[Candidate]]:
    """Grouped, in order, so that a volume is read once for all its slices."""
    sources: dict[Source, list[Candidate]] = defaultdict(list)
    for item in candidates:
        sources[item.source].append(item)
    return sources


def _sampled(source: Source, indices: list[int]) -> list[NDArray[np.float32]]:
    step = sampling_step(*source.shape)
    if isinstance(source, nifti.NiftiVolume):
        return nifti.read_signal(source, indices, step=step)
    return [np.ascontiguousarray(dicom.read_signal(source)[::step, ::step])]


def _pixels(source: Source, indices: list[int], scale: Scale | None) -> list[NDArray[np.int16]]:
    """Stored units: Hounsfield units without a ``scale``, else thousandths of it."""
    if scale is None:
        if isinstance(source, dicom.DicomSlice):
            return [dicom.read_pixels(source)]
        return nifti.read_slices(source, indices)
    if isinstance(source, dicom.DicomSlice):
        return [scale.thousandths(dicom.read_signal(source))]
    return [scale.thousandths(plane) for plane in nifti.read_signal(source, indices)]
