"""Axial slices from NIfTI volumes: CT in Hounsfield units, MR signal as it is."""

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from site_agent.intake.geometry import axial_plane
from site_agent.intake.hounsfield import hounsfield
from site_agent.intake.placement import MAX_EDGE_PX
from site_agent.intake.reasons import Skipped, SkipReason
from site_agent.intake.strictness import STRICT
from site_agent.intake.voxels import chosen_planes

MAX_VOXELS = 2**29
SUFFIXES = (".nii", ".nii.gz")

# NIfTI names no modality: a CT volume has something near air, an MR volume has no negative values.
_CT_MINIMUM_HU = -500


@dataclass(frozen=True)
class NiftiVolume:
    """What is known of a volume before its voxels are read."""

    __pydantic_config__: ClassVar = STRICT

    path: Path
    slices: int  # axial ones, once oriented
    thickness_mm: float
    spacing_mm: tuple[float, float]  # between rows, between columns, as displayed
    shape: tuple[int, int]  # rows, columns, as displayed
    axes: tuple[int, int, int]  # which index of the file grows to the left, the back, the head
    flips: tuple[bool, bool, bool]  # and whether it is stored the other way round


def read_header(path: Path) -> NiftiVolume:
    """Reads size and geometry. Raises ``Skipped`` with the reason."""
    try:
        # Loaded where it is needed: it takes as long as everything else that a reader loads.
        import SimpleITK as sitk  # noqa: N813

        sitk.ProcessObject.SetGlobalWarningDisplay(False)  # its warnings name the file
        reader = sitk.ImageFileReader()
        reader.SetImageIO("NiftiImageIO")
        reader.SetFileName(str(path))
        with _without_stderr():
            reader.ReadImageInformation()
        size, spacing = reader.GetSize(), reader.GetSpacing()
        direction, components = reader.GetDirection(), reader.GetNumberOfComponents()
    except MemoryError:
        raise
    except Exception:
        raise Skipped(SkipReason.UNREADABLE) from None
    if len(size) == 4 and size[3] == 1:
        size, spacing = size[:3], spacing[:3]
        direction = tuple(direction[4 * row + column] for row in range(3) for column in range(3))
    if len(size) != 3 or components != 1:
        raise Skipped(SkipReason.NOT_A_VOLUME)
    if math.prod(size) > MAX_VOXELS or max(size) > MAX_EDGE_PX:
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
        axes=(x, y, z),
        flips=(bool(matrix[0, x] < 0), bool(matrix[1, y] < 0), bool(matrix[2, z] < 0)),
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
    """The chosen slices (n, rows, columns), and the lowest value of the whole volume.

    Raises ``Skipped`` (truncated, unreadable).
    """
    try:
        return chosen_planes(
            volume.path, axes=volume.axes, flips=volume.flips, chosen=chosen, step=step
        )
    except (Skipped, MemoryError):
        raise
    except Exception:
        raise Skipped(SkipReason.UNREADABLE) from None


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
