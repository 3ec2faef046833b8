"""MR series: which are taken, and on what scale.

MR signal has no unit and every series its own gain. So a series is measured against itself: stored
are int16 thousandths of the 99.5th percentile of its foreground, 0 to 4000. Foreground is what lies
above Otsu's threshold (Otsu 1979) of the whole series: it has no constant to set, is the same under
any gain, and air, measured or set to zero, ends up below it however much of it there is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from site_agent.intake.reasons import Skipped, SkipReason
from site_agent.intake.scale import thousandths

LEAST_FOREGROUND = 0.1
"""Share of a slice that must be foreground: less is the top of the skull, or below the head."""

_PERCENTILE = 99.5
_SAMPLED_EDGE = 256  # more pixels of a slice would not move a percentile of the series
_SIGNED_SHARE = 0.25  # magnitudes are positive; resampling leaves a few per cent below zero


@dataclass(frozen=True)
class Scale:
    """A series' own measure: signal above ``threshold`` is foreground, ``full`` is stored 1000."""

    threshold: float
    full: float

    def thousandths(self, signal: NDArray[np.floating]) -> NDArray[np.int16]:
        """``signal`` of any shape as it is stored."""
        return thousandths(signal, full=self.full)

    def shows_anatomy(self, signal: NDArray[np.floating]) -> bool:
        """Whether foreground covers at least a tenth of a slice."""
        return float((signal > self.threshold).mean()) >= LEAST_FOREGROUND


def scale_of(slices: Sequence[NDArray[np.floating]]) -> Scale:
    """The scale of a series, from all its ``slices`` (each (rows, columns), finite).

    Raises ``Skipped``: not-mr where there is much negative signal, as in Hounsfield units or a
    phase image; no-signal where nothing stands out.
    """
    signal = np.concatenate([one.ravel() for one in slices]).astype(np.float64)
    # Processes that only read files need no scikit-image, which is slow to load.
    from skimage.filters import threshold_otsu

    lowest, highest = float(signal.min()), float(signal.max())
    if highest <= 0 or lowest == highest:
        raise Skipped(SkipReason.NO_SIGNAL)
    # A single bright voxel would leave Otsu's histogram empty but for its first bin.
    bright = float(np.percentile(signal[signal > 0], 99.9))
    capped = np.minimum(signal, bright)
    if float(capped.min()) == bright:
        raise Skipped(SkipReason.NO_SIGNAL)
    threshold = max(float(threshold_otsu(capped)), 0.0)
    foreground = signal[signal > threshold]
    if not foreground.size:
        raise Skipped(SkipReason.NO_SIGNAL)
    full = float(np.percentile(foreground, _PERCENTILE))
    if lowest < -_SIGNED_SHARE * full:
        raise Skipped(SkipReason.NOT_MR)
    return Scale(threshold=threshold, full=full)


def sampling_step(rows: int, columns: int) -> int:
    """Every which pixel of each axis is enough to measure a slice of this size."""
    return max(1, math.ceil(max(rows, columns) / _SAMPLED_EDGE))
