"""Gaussian noise of differential privacy, from the operating system's generator.

There is no seed: noise that anybody can draw again is none. And no bare float leaves: the low bits
of a float sum tell which numbers were added (Mironov, CCS 2012; for Gaussian samplers Jin et al.,
arXiv 2112.05307), so that a noised sum could betray the sum without. A noised value is therefore
rounded to a multiple of a power of two, about a millionth of the noise's deviation. Rounding what
is noised already costs no privacy; the grid is the same for all sums; and one of its cells is so
wide that billions of the sampler's values fall into it. This is a mitigation: neither the timing
of the sampler nor its last bits are those of an ideal one.
"""

import math
import os

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_GRID_BITS = 20  # the grid's step lies below the deviation by this power of two, or one more


def noised(values: ArrayLike, *, deviation: float) -> Floats:
    """``values``, of any shape, with noise of that standard deviation, rounded to its grid."""
    clear = np.asarray(values, dtype=np.float64)
    if not np.isfinite(clear).all():
        raise ValueError("values must be finite: noise hides no infinity")
    step = grid(deviation)
    noise = gaussian(clear.size, deviation=deviation).reshape(clear.shape)
    rounded: Floats = np.rint((clear + noise) / step) * step
    return rounded


def grid(deviation: float) -> float:
    """The step, a power of two, to which values with noise of that deviation are rounded."""
    _check(deviation)
    return math.ldexp(1.0, math.frexp(deviation)[1] - 1 - _GRID_BITS)


def gaussian(count: int, *, deviation: float) -> Floats:
    """So many independent normal numbers of mean 0 (Box and Muller): 64 + 53 random bits a pair."""
    _check(deviation)
    pairs = (count + 1) // 2
    words = np.frombuffer(os.urandom(16 * pairs), dtype="<u8").reshape(2, pairs)
    # In (0, 1], in steps of 2^-64 where it is small: the tails reach to 9.4 deviations.
    uniform = (words[0].astype(np.float64) + 1) * 2.0**-64
    radius = deviation * np.sqrt(-2 * np.log(uniform))
    angle = 2 * math.pi * 2.0**-53 * (words[1] >> np.uint64(11)).astype(np.float64)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def _check(deviation: float) -> None:
    if not 0 < deviation < math.inf:
        raise ValueError("deviation must be above 0 and finite")
