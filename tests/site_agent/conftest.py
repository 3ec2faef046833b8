"""Small DICOM files, written as scanners write them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

WriteSlice = Callable[..., Path]
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def real_data() -> Path:
    """The folder of real images; skips where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no real images: {DATA.name} is not beside the repository")
    return DATA


@pytest.fixture
def write_slice() -> WriteSlice:
    return _write_slice


def _write_slice(
    path: Path,
    stored: NDArray[Any] | None = None,
    *,
    patient_id: str = "P1",
    position: tuple[float, float, float] = (0, 0, 0),
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    series: str = "1.2.3",
    syntax: str = ExplicitVRLittleEndian,
    **elements: Any,
) -> Path:
    """A CT slice of ``stored`` values (int16 or uint16); an element given as None is left out."""
    if stored is None:
        stored = np.full((32, 32), 24, np.uint16)
    signed = stored.dtype == np.int16
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = series
    dataset.Modality = "CT"
    dataset.PatientID = patient_id
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ImageOrientationPatient = list(orientation)
    dataset.ImagePositionPatient = list(position)
    dataset.PixelSpacing = [1.0, 1.0]
    dataset.SliceThickness = 2.0
    dataset.RescaleSlope = 1
    dataset.RescaleIntercept = -1024
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = int(signed)
    dataset.PixelData = stored.tobytes()
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    dataset.file_meta = meta
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path
