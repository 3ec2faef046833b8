"""What intake gives: slices in Hounsfield units, by patient."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Slice:
    """One axial slice: ``hu`` (rows, columns), spacing (row, column) in mm, thickness in mm."""

    hu: NDArray[np.int16]
    spacing_mm: tuple[float, float]
    thickness_mm: float | None


@dataclass(frozen=True)
class PatientSlices:
    """The slices kept of one patient, from the feet up, series by series."""

    pseudonym: str
    slices: list[Slice]
