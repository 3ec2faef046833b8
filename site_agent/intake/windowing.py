"""From a slice in stored units (see ``Slice``) to a square image in [0, 1]."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def windowed(
    slices: Sequence[tuple[NDArray[np.int16], tuple[float, float]]],
    *,
    size_px: int,
    low: float,
    high: float,
) -> NDArray[np.float32]:
    """Images (n, 1, size_px, size_px) in [0, 1] of n slices, each with its (row, column) in mm.

    ``low`` and ``high`` are the stored values that become 0 and 1. A slice is padded to a square
    with ``low``, averaged over the area of each new pixel (or interpolated linearly where it is the
    smaller one), and windowed.
    """
    images = np.empty((len(slices), 1, size_px, size_px), np.float32)
    for image, (pixels, spacing_mm) in zip(images, slices, strict=True):
        image[0] = _resized(pixels, spacing_mm, size_px=size_px, fill=low)
    images -= low
    images /= high - low
    return np.clip(images, 0.0, 1.0, out=images)


def _resized(
    pixels: NDArray[np.int16], spacing_mm: tuple[float, float], *, size_px: int, fill: float
) -> NDArray[np.float32]:
    rows, columns = pixels.shape
    edge_mm = max(rows * spacing_mm[0], columns * spacing_mm[1])
    down = _axis_weights(rows, edge_mm / spacing_mm[0], size_px)
    across = _axis_weights(columns, edge_mm / spacing_mm[1], size_px)
    # What the slice does not cover has weight 0 and so becomes fill.
    resized: NDArray[np.float32] = down @ (pixels.astype(np.float32) - np.float32(fill)) @ across.T
    resized += np.float32(fill)
    return resized


@lru_cache(maxsize=64)
def _axis_weights(count: int, extent: float, size: int) -> NDArray[np.float32]:
    """Weights (size, count): ``count`` pixels centred in ``extent`` pixels, resampled."""
    scale = extent / size
    margin = (extent - count) / 2
    pixels = np.arange(count, dtype=np.float64)
    outputs = np.arange(size, dtype=np.float64)[:, None]
    if scale >= 1:
        start = outputs * scale - margin
        overlap = np.minimum(start + scale, pixels + 1) - np.maximum(start, pixels)
        weights = np.maximum(overlap, 0.0) / scale
    else:
        centre = (outputs + 0.5) * scale - margin - 0.5
        if math.isclose(margin, 0.0, abs_tol=1e-9):
            centre = np.clip(centre, 0, count - 1)
        weights = np.maximum(1.0 - np.abs(centre - pixels), 0.0)
    as_float32: NDArray[np.float32] = weights.astype(np.float32)
    return as_float32
