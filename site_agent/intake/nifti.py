"""Axial slices from NIfTI volumes: CT in Hounsfield units, MR signal as it is."""

import gzip
import math
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from site_agent.intake.geometry import axial_plane
from site_agent.intake.hounsfield import hounsfield
from site_agent.intake.reasons import Skipped, SkipReason

MAX_VOXELS = 2**29
SUFFIXES = (".nii", ".nii.gz")

# NIfTI names no modality: a CT volume has something near air, an MR volume has no negative values.
_CT_MINIMUM_HU = -500

_HEADER_BYTES = 352
_CHUNK_BYTES = 1 << 20
_SPARE_BYTES = 64 * 2**20  # what may follow the voxels before reading on is a waste

# ITK's warnings go to stderr and name the file.
sitk.ProcessObject.SetGlobalWarningDisplay(False)


@dataclass(frozen=True)
class NiftiVolume:
    """What is known of a volume before its voxels are read."""

    path: Path
    slices: int  # axial ones, once oriented
    thickness_mm: float
    spacing_mm: tuple[float, float]  # between rows, between columns, as displayed
    shape: tuple[int, int]  # rows, columns, as displayed


def read_header(path: Path) -> NiftiVolume:
    """Reads size and geometry. Raises ``Skipped`` with the reason."""
    try:
        reader = sitk.ImageFileReader()
        reader.SetImageIO("NiftiImageIO")
        reader.SetFileName(str(path))
        with _without_stderr():
            reader.ReadImageInformation()
        size, spacing = reader.GetSize(), reader.GetSpacing()
        direction, components = reader.GetDirection(), reader.GetNumberOfComponents()
    except Exception:
        raise Skipped(SkipReason.UNREADABLE) from None
    if len(size) == 4 and size[3] == 1:
        size, spacing = size[:3], spacing[:3]
        direction = tuple(direction[4 * row + column] for row in range(3) for column in range(3))
    if len(size) != 3 or components != 1:
        raise Skipped(SkipReason.NOT_A_VOLUME)
    if math.prod(size) > MAX_VOXELS:
        raise Skipped(SkipReason.TOO_LARGE)
    if not all(math.isfinite(value) and value > 0 for value in spacing):
        raise Skipped(SkipReason.NO_GEOMETRY)
    # Column k of the direction matrix is where index k grows to.
    cosines = np.abs(np.asarray(direction, np.float64).reshape(3, 3))
    x, y, z = (int(np.argmax(cosines[axis])) for axis in range(3))
    if sorted((x, y, z)) != [0, 1, 2]:
        raise Skipped(SkipReason.NO_GEOMETRY)
    matrix = np.asarray(direction, np.float64).reshape(3, 3)
    axial_plane([*matrix[:, x], *matrix[:, y]])
    return NiftiVolume(
        path=path,
        slices=size[z],
        thickness_mm=float(spacing[z]),
        spacing_mm=(float(spacing[y]), float(spacing[x])),
        shape=(size[y], size[x]),
    )


def read_slices(volume: NiftiVolume, chosen: list[int]) -> list[NDArray[np.int16]]:
    """Reads the ``chosen`` axial slices of CT, counted from the feet, as a DICOM viewer shows them.

    Raises ``Skipped`` (not-ct, truncated, unreadable).
    """
    planes, lowest = _planes(volume, chosen, step=1)
    if lowest > _CT_MINIMUM_HU:
        raise Skipped(SkipReason.NOT_CT)
    return [
        hounsfield(
            np.rint(np.clip(plane, -(2**15), 2**15 - 1)).astype(np.int32),
            slope=1.0,
            intercept=0.0,
            bits_allocated=32,
            padding=None,
        )
        for plane in planes
    ]


def read_signal(
    volume: NiftiVolume, chosen: list[int], *, step: int = 1
) -> list[NDArray[np.float32]]:
    """Reads the ``chosen`` axial slices of MR, turned likewise, every ``step``-th pixel of an axis.

    Raises ``Skipped`` (truncated, unreadable).
    """
    planes, _ = _planes(volume, chosen, step=step)
    return list(planes.astype(np.float32))


def _planes(
    volume: NiftiVolume, chosen: list[int], *, step: int
) -> tuple[NDArray[np.float64], float]:
    """The chosen slices (n, rows, columns), and the lowest value of the whole volume."""
    _refuse_truncated(volume.path)
    try:
        with _without_stderr():
            image = sitk.ReadImage(str(volume.path), imageIO="NiftiImageIO")
        if image.GetDimension() == 4:
            image = image[:, :, :, 0]
        # LPS: x to the left, y to the back, z to the head; the array is (z, y, x).
        oriented = sitk.DICOMOrient(image, "LPS")
        voxels = sitk.GetArrayViewFromImage(oriented)  # no copy: lives as long as its image
        # The library has read NaN as 0.
        stored = voxels[:, ::step, ::step][chosen].astype(np.float64)
        return stored, float(voxels.min())
    except Exception:
        raise Skipped(SkipReason.UNREADABLE) from None


def _refuse_truncated(path: Path) -> None:
    """The library reads voxels that are missing as 0, which is water: so count them first.

    Raises ``Skipped`` (truncated, unreadable); a compressed file's checksum is verified on the way.
    """
    try:
        compressed = path.name.lower().endswith(".gz")
        with gzip.open(path) if compressed else path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
            promised = _promised_bytes(header)
            found = len(header)
            while found <= promised + _SPARE_BYTES and (chunk := file.read(_CHUNK_BYTES)):
                found += len(chunk)
    except (EOFError, zlib.error):
        raise Skipped(SkipReason.TRUNCATED) from None
    except (OSError, struct.error):
        raise Skipped(SkipReason.UNREADABLE) from None
    if found < promised:
        raise Skipped(SkipReason.TRUNCATED)


def _promised_bytes(header: bytes) -> int:
    """The length of the file by its NIfTI-1 or NIfTI-2 header, in either byte order."""
    for order in "<>":
        (kind,) = struct.unpack_from(order + "i", header)
        if kind == 348:
            sizes = struct.unpack_from(order + "8h", header, 40)
            (bits,) = struct.unpack_from(order + "h", header, 72)
            (offset,) = struct.unpack_from(order + "f", header, 108)
        elif kind == 540:
            sizes = struct.unpack_from(order + "8q", header, 16)
            (bits,) = struct.unpack_from(order + "h", header, 14)
            (offset,) = struct.unpack_from(order + "q", header, 168)
        else:
            continue
        if 1 <= sizes[0] <= 7 and math.isfinite(offset):
            return int(offset) + int(math.prod(sizes[1 : sizes[0] + 1])) * int(bits) // 8
    raise Skipped(SkipReason.UNREADABLE)


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Silences the NIfTI library, whose C code prints file names and cannot be told not to."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, 2)
        finally:
            os.close(null)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
