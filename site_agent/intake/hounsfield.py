"""Stored values to Hounsfield units: rescale, padding, and sign mistakes of real scanners."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

AIR_HU = -1000
FLOOR_HU = -1024
"""Lowest value kept: the floor of a 12-bit scanner."""

_NO_TISSUE_HU = -1200  # below the noise of air: what scanners write outside the scan circle
_SURELY_PADDING_HU = -900  # a padding value above this could also be a pixel of the patient
_INT16_MAX = 32767


def hounsfield(
    stored: NDArray[np.generic],
    *,
    slope: float,
    intercept: float,
    bits_allocated: int,
    padding: tuple[int, int] | None,
) -> NDArray[np.int16]:
    """Hounsfield units (int16, at least -1024) of the ``stored`` integers of one slice.

    ``padding`` is the range of PixelPaddingValue and PixelPaddingRangeLimit as the header gives it,
    with whatever sign; padding, and anything below the noise of air, becomes air (-1000).
    """
    if stored.dtype.itemsize == 2 and stored.dtype.kind in "iu":
        stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
        # Each of the 65,536 stored values once, by the same formula, then looked up.
        table, certain, line = _table(stored.dtype.kind, slope, intercept, bits_allocated, padding)
        if line is not None and stored.min() >= line[0] and stored.max() <= line[1]:
            # The part of the table that only adds: four times as fast as looking up.
            hu = stored.view(np.int16) + np.int16(line[2])
        else:
            hu = table[stored.view(np.uint16)]
    else:
        hu, certain = _converted(stored, slope, intercept, bits_allocated, padding)
    if padding is not None and not certain:
        hu[padded(stored, padding, bits_allocated=bits_allocated)] = AIR_HU
    return hu


@lru_cache(maxsize=16)
def _table(
    kind: str, slope: float, intercept: float, bits_allocated: int, padding: tuple[int, int] | None
) -> tuple[NDArray[np.int16], bool, tuple[int, int, int] | None]:
    """By stored value (as unsigned), whether padding is certain, and where it is only an addition.

    That is the least and greatest stored value of a run about the middle of the tissues, and what
    is added; None where a rescale is no whole number or has a slope.
    """
    every = np.arange(2**16, dtype=np.uint16).view(f"{kind}2")
    table, certain = _converted(every, slope, intercept, bits_allocated, padding)
    if slope != 1 or intercept != round(intercept) or abs(intercept) > _INT16_MAX:
        return table, certain, None
    order = np.argsort(every)  # an ascending order of signed values, too
    values, added = every[order].astype(np.int64), int(intercept)
    broken = np.flatnonzero(table[order] != values + added)
    water = int(np.searchsorted(values, -added))  # the stored value of 0 HU
    place = int(np.searchsorted(broken, water))
    first = 0 if place == 0 else int(broken[place - 1]) + 1
    last = (int(broken[place]) if place < len(broken) else 2**16) - 1
    line = (int(values[first]), int(values[last]), added) if first <= water <= last else None
    return table, certain, line


def _converted(
    stored: NDArray[np.generic],
    slope: float,
    intercept: float,
    bits_allocated: int,
    padding: tuple[int, int] | None,
) -> tuple[NDArray[np.int16], bool]:
    """Hounsfield units, and whether all padding is certain to be that, and has become air."""
    signed = bool(np.issubdtype(stored.dtype, np.signedinteger))
    values = stored.astype(np.int64)
    hu = values * slope + intercept
    if not signed:
        # Negative numbers written as unsigned ones: 63536 is -2000.
        wrapped = hu > _INT16_MAX
        hu[wrapped] = (values[wrapped] - 2**bits_allocated) * slope + intercept
    hu[hu < _NO_TISSUE_HU] = AIR_HU
    certain = False
    if padding is not None:
        low, high = _stored_range(padding, bits_allocated, signed)
        certain = max(low * slope, high * slope) + intercept <= _SURELY_PADDING_HU
        if certain:
            hu[(values >= low) & (values <= high)] = AIR_HU
    rounded: NDArray[np.int16] = np.rint(np.clip(hu, FLOOR_HU, _INT16_MAX)).astype(np.int16)
    return rounded, certain


def padded(
    stored: NDArray[np.generic], padding: tuple[int, int], *, bits_allocated: int
) -> NDArray[np.bool_]:
    """Where ``stored`` (rows, columns) holds padding and not, by chance, tissue of that value."""
    signed = bool(np.issubdtype(stored.dtype, np.signedinteger))
    low, high = _stored_range(padding, bits_allocated, signed)
    values = stored.astype(np.int64)
    return _touching_the_border((values >= low) & (values <= high))


def _stored_range(padding: tuple[int, int], bits: int, signed: bool) -> tuple[int, int]:
    low, high = sorted(_as_stored(value, bits, signed) for value in padding)
    return low, high


def _as_stored(value: int, bits: int, signed: bool) -> int:
    """The number of ``bits`` bits that ``value`` is, read with the sign the pixels have."""
    value %= 2**bits
    return value - 2**bits if signed and value >= 2 ** (bits - 1) else value


def _touching_the_border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The connected parts of ``mask`` that reach the image's edge: padding does, tissue not."""
    # Loaded where it is needed: most slices' padding is plain to see, and readers start sooner.
    from scipy import ndimage

    labels, _ = ndimage.label(mask)
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    touching: NDArray[np.bool_] = np.isin(labels, edge[edge > 0])
    return touching
