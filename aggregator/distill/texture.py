"""Random fields over space, as functions of (x, y, z): one person's slices share them.

A field is a cubic B-spline over a lattice of normal numbers. Every plane of the lattice has its own
seed, so any slice is made without its neighbours and still continues them; the three directions
separate, so that a slice costs two small matrix products.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]
"""(H, W) over a plane, or one axis of it."""

REACH_MM = 340.0
"""Fields are defined for |x| and |y| up to here."""
STOCK = 1 << 21
"""Normal numbers that lattices are cut from, each plane at a place of its own."""
_MEAN_SQUARE = 151 / 315
"""Mean over position of the sum of squared cubic B-spline weights."""


@lru_cache(maxsize=1)
def _stock() -> Field:
    return np.random.default_rng(2_025).standard_normal(STOCK, dtype=np.float32)


def _weights(position: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """First lattice index (n,) and the four weights (n, 4) at positions in lattice units."""
    first = np.floor(position).astype(np.int64)
    t = position - first
    weights = np.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=-1
    )
    return first - 1, weights / 6


def _matrix(axis_mm: Field, scale_mm: float, count: int) -> Field:
    position = (np.clip(axis_mm, -REACH_MM, REACH_MM) + REACH_MM) / scale_mm + 1
    first, weights = _weights(np.asarray(position, dtype=np.float64))
    matrix = np.zeros((len(axis_mm), count), np.float32)
    for offset in range(4):
        matrix[np.arange(len(axis_mm)), first + offset] = weights[:, offset]
    return matrix


def smooth_noise(
    x_mm: Field,
    y_mm: Field,
    z_mm: float,
    *,
    scale_mm: float,
    seed: Sequence[int],
    z_scale: float = 1,
) -> Field:
    """A field of about unit variance on the grid (len(y), len(x)) of the plane at ``z_mm``.

    ``scale_mm`` is the lattice's spacing in the plane, ``z_scale`` times it across planes.
    """
    count = int(2 * REACH_MM / scale_mm) + 5
    first, weights = _weights(np.asarray([z_mm / (scale_mm * z_scale)]))
    lattice = np.zeros((count, count), np.float32)
    for offset in range(4):
        # Seeds are non-negative: planes are counted from far below.
        random = np.random.default_rng([*seed, int(first[0]) + offset + 1_000_000])
        start = int(random.integers(STOCK - count * count))
        plane = _stock()[start : start + count * count].reshape(count, count)
        lattice += np.float32(weights[0, offset]) * plane
    field = _matrix(y_mm, scale_mm, count) @ lattice @ _matrix(x_mm, scale_mm, count).T
    return np.asarray(field / np.float32(_MEAN_SQUARE**1.5), np.float32)


def power_law_noise(
    x_mm: Field,
    y_mm: Field,
    z_mm: float,
    *,
    exponent: float,
    finest_mm: float,
    octaves: int,
    seed: Sequence[int],
) -> Field:
    """Unit variance, power in the plane falling as frequency to the -``exponent``.

    The sum of ``octaves`` smooth fields, each twice as coarse as the last. In two dimensions an
    octave of a spectrum f^-b carries power f^(2-b).
    """
    power = [2.0 ** (octave * (exponent - 2)) for octave in range(octaves)]
    total = np.zeros((len(y_mm), len(x_mm)), np.float32)
    for octave in range(octaves):
        total += np.float32((power[octave] / sum(power)) ** 0.5) * smooth_noise(
            x_mm, y_mm, z_mm, scale_mm=finest_mm * 2**octave, seed=[*seed, octave]
        )
    return total
