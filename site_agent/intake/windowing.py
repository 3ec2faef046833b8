"""From a slice in Hounsfield units to a square image in [0, 1]."""

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

    A slice is padded to a square with ``low``, averaged over the area of each new pixel (or
    interpolated linearly where it is the smaller one), and windowed.
    """
    images = np.empty((len(slices), 1, size_px, size_px), np.float32)
    for image, (hu, spacing_mm) in zip(images, slices, strict=True):
        image[0] = _resized(hu, spacing_mm, size_px=size_px, fill_hu=low)
    images -= low
    images /= high - low
    return np.clip(images, 0.0, 1.0, out=images)


def _resized(
    hu: NDArray[np.int16], spacing_mm: tuple[float, float], *, size_px: int, fill_hu: float
) -> NDArray[np.float32]:
    rows, columns = hu.shape
    edge_mm = max(rows * spacing_mm[0], columns * spacing_mm[1])
    down = _axis_weights(rows, edge_mm / spacing_mm[0], size_px)
    across = _axis_weights(columns, edge_mm / spacing_mm[1], size_px)
    # What the slice does not cover has weight 0 and so becomes fill_hu.
    resized: NDArray[np.float32] = down @ (hu.astype(np.float32) - np.float32(fill_hu)) @ across.T
    resized += np.float32(fill_hu)
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
