"""How MR signal is stored: thousandths of a series' own measure."""

import numpy as np
from numpy.typing import NDArray

FULL_SCALE = 1000
"""The stored value of a series' 99.5th percentile."""
CEILING = 4000
"""Largest stored value: vessels and artefacts far above all tissue are cut there."""


def thousandths(signal: NDArray[np.generic], *, full: float) -> NDArray[np.int16]:
    """``signal`` of any shape as it is stored, where ``full`` becomes 1000."""
    scaled = np.rint(signal.astype(np.float64) * (FULL_SCALE / full))
    return np.clip(scaled, 0, CEILING).astype(np.int16)
