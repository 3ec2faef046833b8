"""How noisy slices are: Immerkær's estimator, made robust.

J. Immerkær, "Fast Noise Variance Estimation", Computer Vision and Image Understanding 64(2), 1996:
the difference of two discrete Laplacians takes out whatever is locally a plane, and gives white
noise of standard deviation s one of 6 s. In place of its mean magnitude the median is taken (over
0.6745: Donoho and Johnstone, Biometrika 81(3), 1994), so that edges have little part in it.

The noise of a reconstruction is not white: a soft kernel's, which is smooth from pixel to pixel, is
underestimated. Values compare images of one kernel and pixel size, not kernels.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shared.frozen import Frozen
from shared.tasks.settings import Modality
from site_agent.cohort import Cohort
from site_agent.intake.geometry import evenly_spaced

ESTIMATOR = (
    "Immerkær 1996 (difference of two Laplacians), median magnitude over 0.6745 × 6, in tissue; "
    "noise that is smooth from pixel to pixel is underestimated"
)
TISSUE: dict[Modality, tuple[int, int]] = {"CT": (-150, 250), "MR": (100, 1500)}
"""Stored values of what noise is measured in: HU, or thousandths of a series' percentile."""
LEAST_PIXELS = 500
SLICES_PER_PATIENT = 4

_GAIN = 6.0  # the root of the sum of the mask's squares
_MEDIAN_OF_NORMAL = 0.6745


class Noise(Frozen):
    """Noise of a cohort's slices in stored units: each patient's median, in order of size."""

    estimator: str = ESTIMATOR
    unit: str
    slices: int
    levels: tuple[float, ...]


def noise_level(pixels: NDArray[np.int16], *, low: int, high: int) -> float | None:
    """Noise of a slice (rows, columns) where it and its neighbours lie in ``low`` to ``high``.

    None where there are fewer than 500 such pixels.
    """
    values = pixels.astype(np.int32)
    if min(values.shape) < 3:
        return None
    inside = (values >= low) & (values <= high)
    along = values[:-2] - 2 * values[1:-1] + values[2:]
    mask = inside[:-2] & inside[1:-1] & inside[2:]
    response = along[:, :-2] - 2 * along[:, 1:-1] + along[:, 2:]
    mask = mask[:, :-2] & mask[:, 1:-1] & mask[:, 2:]
    if mask.sum() < LEAST_PIXELS:
        return None
    return float(np.median(np.abs(response[mask])) / (_MEDIAN_OF_NORMAL * _GAIN))


def cohort_noise(cohort: Cohort, *, on_progress: Callable[[int, int], None] | None = None) -> Noise:
    """The noise of at most four slices a patient; ``on_progress`` hears patients done, of all."""
    modality = cohort.index.modality
    low, high = TISSUE[modality]
    members: list[list[int]] = [[] for _ in range(cohort.patients)]
    for number, patient in enumerate(cohort.index.patient):
        members[patient].append(number)
    levels, slices = [], 0
    for done, numbers in enumerate(members, start=1):
        chosen = [numbers[n] for n in evenly_spaced(len(numbers), at_most=SLICES_PER_PATIENT)]
        found = [noise_level(cohort.stored(n), low=low, high=high) for n in chosen]
        measured = [level for level in found if level is not None]
        if measured:
            levels.append(round(float(np.median(measured)), 1))
            slices += len(measured)
        if on_progress is not None:
            on_progress(done, cohort.patients)
    unit = "HU" if modality == "CT" else "thousandths of the series' 99.5th percentile"
    return Noise(unit=unit, slices=slices, levels=tuple(sorted(levels)))
