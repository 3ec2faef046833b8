"""The voxels of a NIfTI-1 or NIfTI-2 file, plane by plane, so that memory stays flat.

Header fields and data types: the NIfTI-1 and NIfTI-2 standards (nifti1.h, nifti2.h). Geometry is
read elsewhere; here the three indices are only turned as ``axes`` and ``flips`` say.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from site_agent.intake.reasons import Skipped, SkipReason
from site_agent.intake.syntaxes import opened

_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_LEAST_HEADER_BYTES = 348
_CHUNK_BYTES = 1 << 20
_MAX_OFFSET_BYTES = 2**24
_SPARE_BYTES = 64 * 2**20  # what may follow the voxels before reading on is a waste


@dataclass(frozen=True)
class _Layout:
    sizes: tuple[int, int, int]  # the first index runs fastest
    dtype: np.dtype[np.generic]
    offset: int
    slope: float
    intercept: float


def chosen_planes(
    path: Path,
    *,
    axes: tuple[int, int, int],
    flips: tuple[bool, bool, bool],
    chosen: Sequence[int],
    step: int,
) -> tuple[NDArray[np.float64], float]:
    """Axial planes (n, rows, columns) of a volume, and the lowest value of all of it.

    ``axes`` names the file's indices that grow along x, y and z, ``flips`` those stored the other
    way round. ``chosen`` counts along z; every ``step``-th pixel is taken of x and y. NaN is 0.

    The whole file is read, once: missing voxels would else pass for water, and a compressed
    file's checksum is at its end. Raises ``Skipped`` (truncated, unreadable).
    """
    with opened(path) as raw:
        compressed = path.name.lower().endswith(".gz")
        file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if compressed else raw
        try:
            layout = _layout(file)
            planes, lowest = _turned(file, layout, axes, flips, chosen, step)
            for _ in range(_SPARE_BYTES // _CHUNK_BYTES):
                if not file.read(_CHUNK_BYTES):
                    break
        except (EOFError, zlib.error):
            raise Skipped(SkipReason.TRUNCATED) from None
        except (OSError, struct.error):
            raise Skipped(SkipReason.UNREADABLE) from None
    return planes, lowest


def _turned(
    file: BinaryIO,
    layout: _Layout,
    axes: tuple[int, int, int],
    flips: tuple[bool, bool, bool],
    chosen: Sequence[int],
    step: int,
) -> tuple[NDArray[np.float64], float]:
    sizes = [layout.sizes[axis] for axis in axes]  # along x, y, z
    along = [range(0, sizes[0], step), range(0, sizes[1], step), list(chosen)]
    if flips[2]:
        along[2] = [sizes[2] - 1 - place for place in chosen]
    # Where the voxels wanted of each of the file's indices are, in display order.
    wanted = [
        np.asarray([size - 1 - n for n in picked] if flip and axis != 2 else list(picked), np.int64)
        for axis, (size, picked, flip) in enumerate(zip(sizes, along, flips, strict=True))
    ]
    result = np.empty([len(one) for one in wanted], np.float64)  # (x, y, z)
    slowest = axes.index(2)
    first, second = axes.index(0), axes.index(1)  # what a stored plane's indices are, displayed
    edges = layout.sizes[0], layout.sizes[1]
    plane_bytes = edges[0] * edges[1] * layout.dtype.itemsize
    lowest = math.inf
    for number in range(layout.sizes[2]):
        content = file.read(plane_bytes)
        if len(content) < plane_bytes:
            raise Skipped(SkipReason.TRUNCATED)
        plane = np.frombuffer(content, layout.dtype).reshape(edges, order="F").astype(np.float64)
        plane = np.nan_to_num(plane, nan=0.0) * layout.slope + layout.intercept
        lowest = min(lowest, float(plane.min()))
        (places,) = np.nonzero(wanted[slowest] == number)
        if not len(places):
            continue
        part = plane[np.ix_(wanted[first], wanted[second])]
        part = part if first < second else part.T
        # (x, y, z) with the slowest index first; what is left of the others stays in their order.
        others = np.moveaxis(result, slowest, 0)
        for place in places:
            others[place] = part
    return np.ascontiguousarray(result.transpose(2, 1, 0)), lowest


def _layout(file: BinaryIO) -> _Layout:
    """What the header promises; leaves ``file`` at the first voxel."""
    header = file.read(_LEAST_HEADER_BYTES)
    for order in "<>":
        (kind,) = struct.unpack_from(order + "i", header)
        if kind == 348:
            count, *sizes = struct.unpack_from(order + "8h", header, 40)
            (code,) = struct.unpack_from(order + "h", header, 70)
            (offset,) = struct.unpack_from(order + "f", header, 108)
            slope, intercept = struct.unpack_from(order + "2f", header, 112)
        elif kind == 540:
            (code,) = struct.unpack_from(order + "h", header, 12)
            count, *sizes = struct.unpack_from(order + "8q", header, 16)
            (offset,) = struct.unpack_from(order + "q", header, 168)
            slope, intercept = struct.unpack_from(order + "2d", header, 176)
        else:
            continue
        flat = [max(size, 1) for size in sizes[:count]] + [1] * (7 - count)
        if not 3 <= count <= 7 or math.prod(flat[3:]) != 1 or code not in _TYPES:
            break
        if not math.isfinite(offset) or not 0 <= offset <= _MAX_OFFSET_BYTES:
            break
        if not (math.isfinite(slope) and math.isfinite(intercept) and slope != 0):
            slope, intercept = 1.0, 0.0
        file.read(max(0, int(offset) - len(header)))
        dtype = np.dtype(order + _TYPES[code])
        return _Layout((flat[0], flat[1], flat[2]), dtype, int(offset), slope, intercept)
    raise Skipped(SkipReason.UNREADABLE)
