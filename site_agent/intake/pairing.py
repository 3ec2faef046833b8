"""Real pairs: two reconstructions of the same positions, of which one is the better image.

1. Of one patient, study and frame of reference, two series are a couple where their slices lie in
   the same places: one orientation, thickness, matrix and pixel size, corners within 0.1 mm, and
   one time of acquisition where both tell it, or phases of contrast would be pairs. Of several,
   the two with the most places in common; each series is in one couple at most.
2. Nothing is resampled to make a pair: to interpolate one side would change the very noise and
   sharpness that it is about. Both sides then go to the contract's size in the same way.
3. What is measured says which is which: LQ is the side with more power at fine detail, above half
   the Nyquist frequency, where noise and a sharp kernel both show. Series that differ by less than
   a tenth are no pair, nor those whose coarse content differs: two scans of one place.
4. Tags say what kind it is: ``dose`` where both sides name one kernel, or where kernels are not
   told and the exposure differs; else ``kernel``. No tag says which side is better.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from site_agent.intake.acquisition import OTHER, UNSAID, Acquisition
from site_agent.intake.dicom import DicomSlice

PairKind = Literal["kernel", "dose"]
Pair = tuple[DicomSlice, DicomSlice]

TOLERANCE_MM = 0.1
"""Farthest two slices, or two corners, may lie apart and be the same."""
LEAST_RATIO = 1.1
"""Power at fine detail of LQ over that of HQ, at least."""
LEAST_DOSE_RATIO = 1.1
"""Larger over smaller exposure that makes two acquisitions differ in dose, at least."""

CRITERIA = (
    "one frame of reference",
    "one orientation",
    f"one position along the body within {TOLERANCE_MM} mm",
    f"one matrix, and corners within {TOLERANCE_MM} mm",
    f"one slice thickness within {TOLERANCE_MM} mm",
    "one time of acquisition",
)

MOST_UNLIKE = 0.06
"""Coarse difference of a couple's sides over their contrast, at most.

Measured: 0.033 to 0.035 of two kernels of a chest, 0.085 where one is shifted by two pixels,
0.11 and more of neighbouring slices.
"""

_COARSE_PX = 16
_LEAST_CONTRAST_HU = 200.0  # of what holds no body, noise would be all of it
_TOLERANCE_COSINE = 1e-3
_LOW_HU, _HIGH_HU = -1024.0, 3071.0


def agreement(a: DicomSlice, b: DicomSlice) -> int:
    """How many of the criteria two slices meet, one after the other: all, where they are a pair."""
    corners = np.subtract(a.corner_mm, b.corner_mm)
    extents = np.multiply(a.spacing_mm, a.shape) - np.multiply(b.spacing_mm, b.shape)
    met = (
        bool(a.frame) and a.frame == b.frame,
        float(np.abs(np.subtract(a.orientation, b.orientation)).max()) <= _TOLERANCE_COSINE,
        abs(a.position_mm - b.position_mm) <= TOLERANCE_MM,
        a.shape == b.shape
        and float(np.linalg.norm(corners)) <= TOLERANCE_MM
        and float(np.abs(extents).max()) <= TOLERANCE_MM,
        abs((a.thickness_mm or 0.0) - (b.thickness_mm or 0.0)) <= TOLERANCE_MM,
        not a.acquired or not b.acquired or a.acquired == b.acquired,
    )
    return met.index(False) if False in met else len(met)


def same_places(
    first: Sequence[DicomSlice], second: Sequence[DicomSlice]
) -> tuple[list[Pair], int]:
    """One slice of each where both lie, and how many places hold several of a kind instead."""
    ordered = sorted(second, key=lambda one: one.position_mm)
    positions = [one.position_mm for one in ordered]
    matches = []
    for a in first:
        begin = bisect_left(positions, a.position_mm - TOLERANCE_MM)
        end = bisect_left(positions, a.position_mm + TOLERANCE_MM + 1e-9)
        near = [b for b in ordered[begin:end] if agreement(a, b) == len(CRITERIA)]
        matches.append((a, near))
    claims = Counter(id(b) for _, near in matches for b in near)
    pairs = [(a, near[0]) for a, near in matches if len(near) == 1 and claims[id(near[0])] == 1]
    return pairs, sum(bool(near) for _, near in matches) - len(pairs)


def couples(slices: Sequence[DicomSlice]) -> list[list[Pair]]:
    """The couples of series of one patient: of each the pairs of slices, from the feet up."""
    together: dict[tuple[str, str], dict[str, list[DicomSlice]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for one in slices:
        if one.frame:
            together[one.study, one.frame][one.series].append(one)
    found = []
    for series in together.values():
        for a, b in combinations(sorted(series), 2):
            pairs, _ = same_places(series[a], series[b])
            if pairs:
                found.append((-len(pairs), a, b, pairs))
    taken: set[str] = set()
    chosen = []
    for _, a, b, pairs in sorted(found, key=lambda one: one[:3]):
        if not taken & {a, b}:
            taken |= {a, b}
            chosen.append(sorted(pairs, key=lambda pair: pair[0].position_mm))
    return chosen


def kind_of(a: Acquisition, b: Acquisition) -> PairKind:
    """What two reconstructions differ by, as far as their tags tell."""
    untold = {a.kernel, b.kernel} & {OTHER, UNSAID}
    if not untold:
        return "dose" if a.kernel == b.kernel else "kernel"
    doses = sorted(dose for dose in (a.exposure_mas, b.exposure_mas) if dose)
    return "dose" if len(doses) == 2 and doses[1] >= LEAST_DOSE_RATIO * doses[0] else "kernel"


def worse_side(
    pairs: Sequence[tuple[NDArray[np.int16], NDArray[np.int16]]],
) -> Literal[0, 1] | None:
    """Which side of a couple's pairs of images in HU is LQ.

    None where they hardly differ in fine detail, or differ in what is coarse.
    """
    if any(unlikeness(*pair) > MOST_UNLIKE for pair in pairs):
        return None
    powers = [sum(fine_power(pair[side]) for pair in pairs) for side in (0, 1)]
    if max(powers) < LEAST_RATIO * min(powers) or max(powers) == 0:
        return None
    return 0 if powers[0] > powers[1] else 1


def unlikeness(a: NDArray[np.int16], b: NDArray[np.int16]) -> float:
    """Difference of means over 16 x 16 pixels, root mean square, over their standard deviation.

    Of images in HU (rows, columns), whose contrast counts as 200 HU at least.
    """
    coarse = []
    for image in (a, b):
        rows, columns = (max(edge // _COARSE_PX, 1) for edge in image.shape)
        cut = image[: rows * _COARSE_PX, : columns * _COARSE_PX]
        values = np.clip(cut.astype(np.float32), _LOW_HU, _HIGH_HU)
        blocks = values.reshape(rows, len(cut) // rows, columns, cut.shape[1] // columns)
        coarse.append(blocks.mean(axis=(1, 3)))
    difference = float(np.sqrt(np.mean((coarse[0] - coarse[1]) ** 2)))
    return difference / max(float(coarse[0].std()), float(coarse[1].std()), _LEAST_CONTRAST_HU)


def fine_power(image: NDArray[np.int16]) -> float:
    """Power of an image (rows, columns) above half the Nyquist frequency, HU squared, tapered."""
    rows, columns = image.shape
    values = np.clip(image.astype(np.float32), _LOW_HU, _HIGH_HU)
    taper = np.hanning(rows)[:, None] * np.hanning(columns)
    spectrum = np.fft.rfft2((values - values.mean()) * taper)
    radius = 2 * np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns))
    return float((np.abs(spectrum[radius > 0.5]) ** 2).sum() / taper.size)
