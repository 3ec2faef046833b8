"""Geometry of slices: which are axial, how to turn one for display, where it lies.

Directions are the patient's (DICOM PS3.3 C.7.6.2): +x to the left, +y to the back, +z to the head.
A displayed axial slice has x growing along a row and y growing down a column.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from site_agent.intake.reasons import Skipped, SkipReason
from site_agent.intake.strictness import STRICT

Pixel = TypeVar("Pixel", bound=np.generic)

MAX_TILT_DEGREES = 35.0
"""Largest angle between a slice's normal and the body axis: a gantry tilts by up to 30."""

THIN_MM = 5.0
"""Thicker slices are smooth already: they are taken where a patient has no others."""


@dataclass(frozen=True)
class Plane:
    """How a slice lies in the patient, and how to turn it for axial display."""

    __pydantic_config__: ClassVar = STRICT

    normal: tuple[float, float, float]  # unit vector, towards the head
    transpose: bool
    flip_rows: bool
    flip_columns: bool

    def display(self, pixels: NDArray[Pixel]) -> NDArray[Pixel]:
        """``pixels`` (rows, columns) turned by quarter turns and mirrored as needed."""
        if self.transpose:
            pixels = pixels.T
        if self.flip_rows:
            pixels = pixels[::-1]
        if self.flip_columns:
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(pixels)

    def position_mm(self, corner_mm: Sequence[float]) -> float:
        """Where a slice with this ImagePositionPatient lies along the normal."""
        return sum(a * b for a, b in zip(self.normal, corner_mm, strict=True))


def axial_plane(orientation: Sequence[float]) -> Plane:
    """The plane of an ImageOrientationPatient: direction cosines of a row, then of a column.

    Raises ``Skipped`` (no-geometry, not-axial).
    """
    if len(orientation) != 6 or not all(math.isfinite(value) for value in orientation):
        raise Skipped(SkipReason.NO_GEOMETRY)
    row, column = orientation[:3], orientation[3:]
    lengths = math.hypot(*row), math.hypot(*column)
    if (
        max(abs(length - 1) for length in lengths) > 0.05
        or abs(sum(a * b for a, b in zip(row, column, strict=True))) > 0.05
    ):
        raise Skipped(SkipReason.NO_GEOMETRY)
    normal = _towards_the_head(row, column)
    if normal[2] < math.cos(math.radians(MAX_TILT_DEGREES)):
        raise Skipped(SkipReason.NOT_AXIAL)
    transpose = abs(row[0]) < abs(row[1])
    if transpose:
        row, column = column, row
    return Plane(
        normal=normal, transpose=transpose, flip_rows=column[1] < 0, flip_columns=row[0] < 0
    )


def _towards_the_head(row: Sequence[float], column: Sequence[float]) -> tuple[float, float, float]:
    """The unit vector along the cross product, or against it."""
    x = row[1] * column[2] - row[2] * column[1]
    y = row[2] * column[0] - row[0] * column[2]
    z = row[0] * column[1] - row[1] * column[0]
    length = math.copysign(math.hypot(x, y, z), z)
    return x / length, y / length, z / length


def evenly_spaced(count: int, *, at_most: int) -> list[int]:
    """At most ``at_most`` of ``range(count)``, ascending, each in the middle of its equal share."""
    if count <= at_most:
        return list(range(count))
    return [(2 * index + 1) * count // (2 * at_most) for index in range(at_most)]
