"""Three simulated hospitals: phantom patients as DICOM files of three different scanners.

Every file says that it is simulated (``DEMO^PHANTOM``, ``ImageComments``). The scanners differ in
matrix, spacing, thickness, sharpness and texture of the noise, table, position of the patient,
padding outside the field of view and the way CT numbers are stored.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy.ndimage import gaussian_filter

from deploy.demo.anatomy import Patient, draw_patient, draw_slice
from deploy.demo.canvas import Field, millimetres

CHEST_MM = 300.0
"""Length of a phantom patient from level 0 to level 1."""


@dataclass(frozen=True)
class Scanner:
    """One hospital's machine and habits."""

    hospital: str
    size_px: int
    thickness_mm: float
    margin: float
    """Field of view over the width of the body; below 1 the body is cut off."""
    blur_mm: float
    noise_hu: float
    grain_mm: float
    """Width of the noise's grain: a soft kernel has a coarse one."""
    table: Literal["cradle", "flat", "wedge"]
    drop_mm: float
    """How far below the middle of the field of view the body lies."""
    body: float
    intercept: int
    padding: int | None
    """Stored value outside the round field of view; None: the scanner fills it with air."""
    kernel: str


SCANNERS = (
    Scanner("hospital-a", 256, 5.0, 1.06, 0.55, 9.0, 1.1, "cradle", 12.0, 1.0, -1024, None, "B30f"),
    Scanner("hospital-b", 512, 1.25, 1.28, 0.30, 24.0, 0.5, "wedge", -6.0, 0.94, -1024, -2000,
            "LUNG"),
    Scanner("hospital-c", 256, 2.5, 1.00, 0.70, 13.0, 1.6, "flat", 18.0, 1.05, 0, -2000,
            "STANDARD"),
)  # fmt: skip


def write_hospital(
    folder: Path, *, scanner: Scanner, patients: int, seed: int, on_patient: Callable[[int], None]
) -> None:
    """Writes ``folder/DEMO-A-01/1.dcm`` and so on for one hospital."""
    index = SCANNERS.index(scanner)
    for number in range(1, patients + 1):
        name = f"DEMO-{scanner.hospital[-1].upper()}-{number:02d}"
        own_seed = seed * 1_000_000 + index * 1000 + number
        write_patient(folder / name, scanner=scanner, patient_id=name, seed=own_seed)
        on_patient(number)


def write_patient(folder: Path, *, scanner: Scanner, patient_id: str, seed: int) -> None:
    """Writes two or three slices of one phantom patient."""
    rng = np.random.default_rng([seed, 3])
    patient = draw_patient(seed, size=scanner.body)
    width = 2 * patient.half_width * scanner.margin * rng.uniform(0.97, 1.08)
    pixel_mm = round(width / scanner.size_px, 6)
    count = 2 + int(rng.uniform() < 0.6)
    levels = 0.24 + 0.88 * (np.arange(count) + rng.uniform(0.1, 0.9, count)) / count
    centre = (float(rng.normal(0, 6)), scanner.drop_mm + float(rng.normal(0, 5)))
    folder.mkdir(parents=True)
    for number, level in enumerate(levels.tolist(), 1):
        hu = scan(patient, scanner=scanner, level=level, pixel_mm=pixel_mm, centre=centre, rng=rng)
        dataset = as_dicom(
            hu, scanner=scanner, patient_id=patient_id, number=number, level=level,
            pixel_mm=pixel_mm, male=patient.breasts == 0,
        )  # fmt: skip
        dataset.save_as(folder / f"{number}.dcm", enforce_file_format=True)


def scan(
    patient: Patient,
    *,
    scanner: Scanner,
    level: float,
    pixel_mm: float,
    centre: tuple[float, float],
    rng: np.random.Generator,
) -> Field:
    """HU of one slice as the scanner gives it: table, blur, textured noise."""
    hu = draw_slice(patient, level=level, size_px=scanner.size_px, pixel_mm=pixel_mm, centre=centre)
    _lay_on_table(hu, scanner, pixel_mm, bottom_mm=centre[1] + patient.half_depth)
    hu = gaussian_filter(hu, scanner.blur_mm / pixel_mm)
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    noise = gaussian_filter(noise, scanner.grain_mm / pixel_mm)
    # Rays through the middle of a body are the weakest ones.
    x, y = millimetres(size_px=scanner.size_px, pixel_mm=pixel_mm)
    thick = 0.55 + 0.75 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / 110.0**2)
    return np.asarray(hu + noise * (scanner.noise_hu / noise.std()) * thick, dtype=np.float32)


def _lay_on_table(hu: Field, scanner: Scanner, pixel_mm: float, *, bottom_mm: float) -> None:
    """Adds the table under the body: shells of a light composite."""
    x, y = millimetres(size_px=scanner.size_px, pixel_mm=pixel_mm)
    depth = y - bottom_mm - 4
    if scanner.table == "cradle":
        first = np.abs(depth + (x / 26) ** 2) - 1.4
        second = np.abs(depth - 34 + (x / 34) ** 2) - 1.2
    elif scanner.table == "flat":
        first = np.maximum(np.abs(depth) - 1.6, np.abs(x) - 215)
        second = np.maximum(np.abs(depth - 26) - 1.6, np.abs(x) - 215)
    else:
        bend = np.maximum(np.abs(x) - 95, 0)
        first = np.maximum(np.abs(depth + 0.85 * bend) - 1.5, np.abs(x) - 190)
        second = np.maximum(np.abs(depth - 42 + 0.9 * bend) - 2.0, np.abs(x) - 190)
    air = hu < -900
    for shell, value in ((first, -150.0), (second, 60.0)):
        cover = np.clip(0.5 - shell / pixel_mm, 0, 1) * air
        hu += cover * (value - hu)


def as_dicom(
    hu: Field,
    *,
    scanner: Scanner,
    patient_id: str,
    number: int,
    level: float,
    pixel_mm: float,
    male: bool,
) -> FileDataset:
    """A CT Image Storage object (PS3.3 A.3) of one slice, head first, supine."""
    stored = _stored(hu, scanner, pixel_mm)
    signed = scanner.padding is not None
    uid = [generate_uid(entropy_srcs=["fedstill demo", patient_id, part])
           for part in ("study", "series", "frame", f"image {number}")]  # fmt: skip
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = uid[3]
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = uid[3]
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = "20240101"
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = "120000"
    dataset.AccessionNumber = ""
    dataset.Modality = "CT"
    dataset.Manufacturer = "fedstill (simulated)"
    dataset.ManufacturerModelName = f"Phantom {scanner.hospital[-1].upper()}"
    dataset.InstitutionName = f"{scanner.hospital} (simulated)"
    dataset.ReferringPhysicianName = ""
    dataset.PatientName = "DEMO^PHANTOM"
    dataset.PatientID = patient_id
    dataset.PatientBirthDate = ""
    dataset.PatientSex = "M" if male else "F"
    dataset.ImageComments = "SIMULATED: a procedural phantom, nobody was scanned"
    dataset.BodyPartExamined = "CHEST"
    dataset.SliceThickness = scanner.thickness_mm
    dataset.KVP = 120
    dataset.ConvolutionKernel = scanner.kernel
    dataset.PatientPosition = "HFS"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = uid[:3]
    dataset.StudyID = "1"
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = number
    corner = -(scanner.size_px - 1) / 2 * pixel_mm
    position = [corner, corner, -level * CHEST_MM]
    dataset.ImagePositionPatient = [f"{value:.4f}" for value in position]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.SliceLocation = f"{position[2]:.4f}"
    dataset.PositionReferenceIndicator = ""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows = dataset.Columns = scanner.size_px
    dataset.PixelSpacing = [f"{pixel_mm:.6f}"] * 2
    dataset.BitsAllocated = 16
    dataset.BitsStored = 16 if signed else 12
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(signed)
    if scanner.padding is not None:
        dataset.add_new("PixelPaddingValue", "SS", scanner.padding)
    dataset.RescaleIntercept = scanner.intercept
    dataset.RescaleSlope = 1
    dataset.RescaleType = "HU"
    dataset.WindowCenter, dataset.WindowWidth = -400, 1500
    dataset.PixelData = stored.tobytes()
    return dataset


def _stored(hu: Field, scanner: Scanner, pixel_mm: float) -> NDArray[np.int16] | NDArray[np.uint16]:
    values = np.clip(np.rint(hu), -1024, 3071) - scanner.intercept
    x, y = millimetres(size_px=scanner.size_px, pixel_mm=pixel_mm)
    outside = np.hypot(x, y) > scanner.size_px / 2 * pixel_mm
    if scanner.padding is None:
        values[outside] = -1024 - scanner.intercept
        return values.astype("<u2")
    values[outside] = scanner.padding
    return values.astype("<i2")


def main() -> None:
    """Writes one hospital (``python -m deploy.demo.hospitals``): three run side by side."""
    parser = argparse.ArgumentParser(prog="deploy.demo.hospitals", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="the hospital's folder, named after it")
    parser.add_argument("--patients", type=int, required=True, help="how many")
    given = parser.parse_args()
    scanner = next(one for one in SCANNERS if one.hospital == given.folder.name)

    def tell(number: int) -> None:
        print(f"{scanner.hospital}: patient {number}/{given.patients}", flush=True)

    write_hospital(given.folder, scanner=scanner, patients=given.patients, seed=0, on_patient=tell)


if __name__ == "__main__":
    main()
