"""The simulated hospitals: valid, varied, plausible and quick to write."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import CTImageStorage

from deploy.demo.anatomy import draw_patient, draw_slice
from deploy.demo.hospitals import SCANNERS, write_hospital, write_patient


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospitals")
    for scanner in SCANNERS:
        told: list[int] = []
        write_hospital(
            folder / scanner.hospital, scanner=scanner, patients=3, seed=0, on_patient=told.append
        )
        assert told == [1, 2, 3]
    return folder


def hounsfield(dataset: pydicom.Dataset) -> NDArray[np.float64]:
    """HU with the padding as air."""
    stored = dataset.pixel_array.astype(float)
    hu = stored * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    if "PixelPaddingValue" in dataset:
        hu[stored == dataset.PixelPaddingValue] = -1024
    return hu


def test_every_hospital_has_its_patients_with_two_or_three_slices(hospitals: Path) -> None:
    for scanner in SCANNERS:
        folders = sorted((hospitals / scanner.hospital).iterdir())
        assert len(folders) == 3
        for folder in folders:
            datasets = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
            assert len(datasets) in (2, 3)
            assert {dataset.PatientID for dataset in datasets} == {folder.name}
            assert len({dataset.SeriesInstanceUID for dataset in datasets}) == 1
            assert len({dataset.SOPInstanceUID for dataset in datasets}) == len(datasets)
            assert len({tuple(d.ImagePositionPatient) for d in datasets}) == len(datasets)


def test_the_files_are_ct_and_say_that_they_are_simulated(hospitals: Path) -> None:
    for path in hospitals.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        assert dataset.SOPClassUID == CTImageStorage
        assert dataset.PatientName == "DEMO^PHANTOM"
        assert "SIMULATED" in dataset.ImageComments
        assert "simulated" in dataset.Manufacturer
        assert dataset.pixel_array.shape == (dataset.Rows, dataset.Columns)
        assert len(dataset.PixelSpacing) == 2
        assert dataset.ImageOrientationPatient == [1, 0, 0, 0, 1, 0]


def test_the_scanners_differ(hospitals: Path) -> None:
    kinds = set()
    for path in hospitals.rglob("1.dcm"):
        dataset = pydicom.dcmread(path)
        kinds.add(
            (
                dataset.InstitutionName,
                dataset.SliceThickness,
                dataset.ConvolutionKernel,
                dataset.RescaleIntercept,
                dataset.get("PixelPaddingValue"),
            )
        )
    assert len(kinds) == 3
    assert {kind[4] for kind in kinds} == {None, -2000}


def test_tissues_have_their_ct_numbers(hospitals: Path) -> None:
    for path in hospitals.rglob("*.dcm"):
        hu = hounsfield(pydicom.dcmread(path))
        body = hu[(hu > -980) & (hu < 1500)]
        share = {
            "lung or air": np.mean((hu > -980) & (hu < -700)),
            "fat": np.mean((body > -150) & (body < -50)),
            "soft tissue": np.mean((body > 0) & (body < 120)),
            "bone": np.mean(body > 250),
        }
        assert share["fat"] > 0.03, path
        assert share["soft tissue"] > 0.1, path
        assert 0.005 < share["bone"] < 0.15, path
        assert share["lung or air"] > 0.005, path


def test_a_patient_is_the_same_each_time_and_unlike_the_next(tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        write_patient(tmp_path / name, scanner=SCANNERS[0], patient_id="DEMO-A-01", seed=seed)
    one, two, other = ((tmp_path / name / "1.dcm").read_bytes() for name in ("one", "two", "other"))
    assert one == two
    assert one != other
    first, second = (
        hounsfield(pydicom.dcmread(tmp_path / name / "1.dcm")) for name in ("one", "other")
    )
    assert np.abs(first - second).mean() > 50


def test_anatomy_changes_with_the_level() -> None:
    patient = draw_patient(4, size=1.0)
    lungs = [
        np.mean(draw_slice(patient, level=level, size_px=128, pixel_mm=3.0) < -600)
        for level in (0.5, 1.15)
    ]
    outside = np.mean(draw_slice(patient, level=0.5, size_px=128, pixel_mm=3.0) == -1000)
    assert lungs[0] - outside > 0.1
    assert lungs[1] - outside < 0.05
