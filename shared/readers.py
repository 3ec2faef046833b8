"""Reading a folder of images without knowing who can.

The intake of DICOM and NIfTI belongs to the site agent, which ``shared`` and ``aggregator`` do not
import. A package that can read registers a function under the entry-point group
``fedstill.readers``.
"""

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.tasks.settings import Modality

GROUP = "fedstill.readers"


class ReaderError(ValueError):
    """A folder that cannot be read as images: what is wrong with it, and what to do."""

    def __init__(self, folder: Path, problem: str, hint: str = "") -> None:
        super().__init__(f"{folder}: {problem}" + (f"; {hint}" if hint else ""))
        self.problem = problem
        self.hint = hint


def read_images(
    folder: Path,
    *,
    size_px: int,
    low: float,
    high: float,
    modality: Modality,
    sequence: str | None = None,
) -> list[NDArray[np.float32]]:
    """One (n, 1, S, S) array in window units a patient, of one modality.

    ``low`` and ``high`` are the stored values mapped to 0 and 1 (a task's ``window``): HU, or for
    MR thousandths of a series' 99.5th percentile. ``sequence`` chooses among a patient's MR series
    by name; without it all are read.

    Raises ``ReaderError`` where no reader is installed, or the folder holds nothing readable.
    """
    if not folder.is_dir():
        raise ReaderError(folder, "is not a folder", "give a folder of DICOM or NIfTI images")
    readers = list(entry_points(group=GROUP))
    try:
        read: Any = readers[0].load()
    except (IndexError, ImportError):
        raise ReaderError(
            folder,
            "no reader of DICOM and NIfTI is installed",
            "run `pip install 'fedstill[train]'`",
        ) from None
    try:
        patients: list[NDArray[np.float32]] = read(
            folder, size_px=size_px, low=low, high=high, modality=modality, sequence=sequence
        )
    except ValueError as error:
        raise ReaderError(folder, str(error).removeprefix(f"{folder}: ")) from None
    if not patients:
        raise ReaderError(folder, f"holds no axial {modality} slice that can be read")
    return patients
