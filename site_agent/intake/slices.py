"""What intake gives: slices in stored units, by patient."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from site_agent.intake.pairing import PairKind


@dataclass(frozen=True)
class Slice:
    """One axial slice: ``pixels`` (rows, columns), spacing (row, column) in mm, thickness in mm.

    Stored units: Hounsfield units of CT, of MR thousandths of the series' 99.5th percentile.
    """

    pixels: NDArray[np.int16]
    spacing_mm: tuple[float, float]
    thickness_mm: float | None


@dataclass(frozen=True)
class SlicePair:
    """Two images of one place and one grid: ``lq`` has more power at fine detail than ``hq``."""

    kind: PairKind
    lq: Slice
    hq: Slice


@dataclass(frozen=True)
class PatientSlices:
    """The slices kept of one patient, from the feet up, series by series."""

    pseudonym: str
    slices: list[Slice]
    pairs: list[SlicePair] = field(default_factory=list)
