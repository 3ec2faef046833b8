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

GROUP = "fedstill.readers"


class ReaderError(ValueError):
    """A folder that cannot be read as images; the text says what to do."""


def read_images(
    folder: Path, *, size_px: int, low_hu: float, high_hu: float
) -> list[NDArray[np.float32]]:
    """One (n, 1, S, S) array in window units a patient.

    Raises ``ReaderError`` where no reader is installed, or the folder holds nothing readable.
    """
    if not folder.is_dir():
        raise ReaderError(f"{folder}: no such folder")
    readers = entry_points(group=GROUP, name="folder")
    try:
        read: Any = next(iter(readers)).load()
    except (StopIteration, ImportError):
        raise ReaderError(
            "no reader of DICOM and NIfTI is installed: pip install 'fedstill[train]'"
        ) from None
    patients: list[NDArray[np.float32]] = read(
        folder, size_px=size_px, low_hu=low_hu, high_hu=high_hu
    )
    if not patients:
        raise ReaderError(f"{folder}: holds no axial CT slice that can be read")
    return patients
