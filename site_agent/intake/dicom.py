"""CT and MR slices from DICOM files: header first, pixels only of what is needed.

Part 3 of the standard, CT Image module (C.8.2.1): stored values times RescaleSlope plus
RescaleIntercept are Hounsfield units, whatever PhotometricInterpretation says of their display, so
MONOCHROME1 is not inverted. MR signal has no unit; slope and intercept only take back what a
scanner scaled each slice by.
"""

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import get_decoder
from pydicom.uid import (
    UID,
    AllTransferSyntaxes,
    DeflatedExplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from shared.tasks.settings import Modality
from site_agent.intake.geometry import Plane, axial_plane
from site_agent.intake.hounsfield import hounsfield, padded
from site_agent.intake.mr import names_sequence
from site_agent.intake.reasons import Skipped, SkipReason

MAX_FILE_BYTES = 256 * 2**20
MAX_EDGE_PX = 4096
MIN_EDGE_PX = 16

_HEADER_TAGS = [
    "BitsAllocated",
    "BurnedInAnnotation",
    "Columns",
    "EchoTime",
    "FrameOfReferenceUID",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "ImageType",
    "Modality",
    "NumberOfFrames",
    "PatientID",
    "PhotometricInterpretation",
    "PixelPaddingRangeLimit",
    "PixelPaddingValue",
    "PixelRepresentation",
    "PixelSpacing",
    "ProtocolName",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "Rows",
    "SOPInstanceUID",
    "SamplesPerPixel",
    "SeriesDescription",
    "SeriesInstanceUID",
    "SliceThickness",
]
_PIXEL_TAGS = [
    "BitsAllocated",
    "BitsStored",
    "Columns",
    "HighBit",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "PixelData",
    "PixelRepresentation",
    "PlanarConfiguration",
    "Rows",
    "SamplesPerPixel",
]
# Identifiers that de-identification tools give to everybody: they name no one patient.
_NOBODY = {"", "NONE", "UNKNOWN", "ANON", "ANONYMOUS", "ANONYMIZED", "ANONYMISED", "REMOVED"}

# pydicom's log lines and warnings repeat tag values, patients' names among them.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)


@dataclass(frozen=True)
class DicomSlice:
    """What is known of a slice before its pixels are read. ``patient_id`` stays in memory."""

    path: Path
    patient_id: str | None
    series: str  # of MR an echo of a series: echoes are contrasts of their own
    instance: str
    frame: str  # of reference: positions of one frame can be compared
    plane: Plane
    orientation: tuple[float, ...]
    corner_mm: tuple[float, ...]  # ImagePositionPatient
    position_mm: float
    thickness_mm: float | None
    spacing_mm: tuple[float, float]  # between rows, between columns, as displayed
    shape: tuple[int, int]  # rows, columns, as displayed
    slope: float
    intercept: float
    bits_allocated: int
    padding: tuple[int, int] | None


def read_header(
    path: Path, *, modality: Modality = "CT", sequence: str | None = None
) -> DicomSlice:
    """Reads everything but the pixels.

    ``sequence`` is looked for in the series' name, of which nothing is kept. Raises ``Skipped``
    with the reason where the file is not an axial slice of ``modality`` that can be read.
    """
    with _reading():
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise Skipped(SkipReason.TOO_LARGE)
        syntax = _transfer_syntax(path)
        with path.open("rb") as file:
            header = dcmread(file, stop_before_pixels=True, specific_tags=list(_HEADER_TAGS))
            # It stopped before the tag, representation and length of the pixels.
            pixel_bytes = size - file.tell() - (8 if syntax.is_implicit_VR else 12)
        _refuse_unwanted(header, modality)
        names = [str(header.get(tag) or "") for tag in ("ProtocolName", "SeriesDescription")]
        if sequence is not None and not any(names_sequence(name, sequence) for name in names):
            raise Skipped(SkipReason.OTHER_SEQUENCE)
        _refuse_impossible_size(header, pixel_bytes, compressed=syntax.is_compressed)
        orientation = _numbers(header, "ImageOrientationPatient", 6)
        corner = _numbers(header, "ImagePositionPatient", 3)
        plane = axial_plane(orientation)
        shape = int(header.Rows), int(header.Columns)
        spacing = _numbers(header, "PixelSpacing", 2)
        if min(spacing) <= 0:
            raise Skipped(SkipReason.NO_GEOMETRY)
        slope, intercept = _rescale(header, modality)
        series = str(header.get("SeriesInstanceUID", ""))
        if modality == "MR":
            series = f"{series} {header.get('EchoTime') or 0}"
        return DicomSlice(
            path=path,
            patient_id=_patient_id(header),
            series=series,
            instance=str(header.get("SOPInstanceUID", "")),
            frame=str(header.get("FrameOfReferenceUID", "")),
            plane=plane,
            orientation=tuple(orientation),
            corner_mm=tuple(corner),
            position_mm=plane.position_mm(corner),
            thickness_mm=_thickness_mm(header),
            spacing_mm=(spacing[1], spacing[0]) if plane.transpose else (spacing[0], spacing[1]),
            shape=shape[::-1] if plane.transpose else shape,
            slope=slope,
            intercept=intercept,
            bits_allocated=int(header.BitsAllocated),
            padding=_padding(header),
        )


def read_pixels(header: DicomSlice) -> NDArray[np.int16]:
    """Reads a CT slice in Hounsfield units, turned for axial display, (rows, columns).

    Raises ``Skipped`` (undecodable, unreadable).
    """
    with _reading():
        return header.plane.display(
            hounsfield(
                _stored(header.path),
                slope=header.slope,
                intercept=header.intercept,
                bits_allocated=header.bits_allocated,
                padding=header.padding,
            )
        )


def read_signal(header: DicomSlice) -> NDArray[np.float32]:
    """Reads an MR slice on the scanner's scale, turned for axial display; padding becomes 0.

    Raises ``Skipped`` (undecodable, unreadable).
    """
    with _reading():
        stored = _stored(header.path)
        signal = stored.astype(np.float64) * header.slope + header.intercept
        if header.padding is not None:
            signal[padded(stored, header.padding, bits_allocated=header.bits_allocated)] = 0.0
        return header.plane.display(signal.astype(np.float32))


def _stored(path: Path) -> NDArray[np.generic]:
    dataset = dcmread(path, specific_tags=list(_PIXEL_TAGS))
    try:
        stored: NDArray[np.generic] = dataset.pixel_array
    except Exception:
        raise Skipped(SkipReason.UNDECODABLE) from None
    if stored.ndim != 2:
        raise Skipped(SkipReason.UNDECODABLE)
    return stored


@contextmanager
def _reading() -> Iterator[None]:
    """Turns whatever goes wrong with a file into a code: its text may repeat what the file says."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Skipped:
        raise
    except Exception:
        raise Skipped(SkipReason.UNREADABLE) from None


def _transfer_syntax(path: Path) -> UID:
    try:
        meta = read_file_meta_info(path)
    except InvalidDicomError:
        raise Skipped(SkipReason.NOT_AN_IMAGE) from None
    if meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise Skipped(SkipReason.NOT_AN_IMAGE)
    syntax = UID(str(meta.get("TransferSyntaxUID", "")))
    # A deflated file of half a megabyte can expand to a gigabyte before anything can be checked.
    if syntax not in AllTransferSyntaxes or syntax == DeflatedExplicitVRLittleEndian:
        raise Skipped(SkipReason.UNSUPPORTED_SYNTAX)
    try:
        decodable = get_decoder(syntax).is_available
    except NotImplementedError:
        decodable = False
    if not decodable:
        raise Skipped(SkipReason.UNSUPPORTED_SYNTAX)
    return syntax


def _refuse_unwanted(header: Dataset, modality: Modality) -> None:
    image_type = [str(part).upper() for part in _sequence(header.get("ImageType"))]
    if str(header.get("Modality", "")).upper() != modality:
        raise Skipped(SkipReason.NOT_CT if modality == "CT" else SkipReason.NOT_MR)
    if "LOCALIZER" in image_type or "SCOUT" in image_type:
        raise Skipped(SkipReason.LOCALISER)
    if int(header.get("NumberOfFrames") or 1) != 1:
        raise Skipped(SkipReason.MULTI_FRAME)
    photometric = str(header.get("PhotometricInterpretation", ""))
    if int(header.get("SamplesPerPixel") or 1) != 1 or not photometric.startswith("MONOCHROME"):
        raise Skipped(SkipReason.NOT_GREYSCALE)
    if str(header.get("BurnedInAnnotation", "")).upper() == "YES":
        raise Skipped(SkipReason.BURNED_IN)


def _refuse_impossible_size(header: Dataset, pixel_bytes: int, *, compressed: bool) -> None:
    rows, columns = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
    bits = int(header.get("BitsAllocated") or 0)
    if max(rows, columns) > MAX_EDGE_PX:
        raise Skipped(SkipReason.TOO_LARGE)
    if min(rows, columns) < MIN_EDGE_PX or bits not in (8, 16, 32):
        raise Skipped(SkipReason.UNREADABLE)
    if not compressed and pixel_bytes < rows * columns * bits // 8:
        raise Skipped(SkipReason.TRUNCATED)


def _rescale(header: Dataset, modality: Modality) -> tuple[float, float]:
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    if modality == "MR":
        # Optional in an MR image, and in no unit.
        slope, intercept = 1 if slope is None else slope, intercept or 0
        return (float(slope), float(intercept)) if float(slope) > 0 else (1.0, 0.0)
    # Absent means HU in a CT image (C.8.2.1); scanners spell it in their own ways.
    kind = str(header.get("RescaleType") or "HU").strip().upper()
    if not kind.startswith(("HU", "HOUN")):
        raise Skipped(SkipReason.NOT_HOUNSFIELD)
    if slope is None or intercept is None:
        raise Skipped(SkipReason.NOT_HOUNSFIELD)
    if not (math.isfinite(float(slope)) and math.isfinite(float(intercept)) and float(slope) > 0):
        raise Skipped(SkipReason.NOT_HOUNSFIELD)
    return float(slope), float(intercept)


def _padding(header: Dataset) -> tuple[int, int] | None:
    value = header.get("PixelPaddingValue")
    if value is None or value == b"":
        return None
    limit = header.get("PixelPaddingRangeLimit")
    first = _integer(value)
    return first, first if limit is None or limit == b"" else _integer(limit)


def _integer(value: Any) -> int:
    # An ambiguous "US or SS" element of an implicit file may come as its two bytes.
    return int.from_bytes(value[:2], "little") if isinstance(value, bytes) else int(value)


def _thickness_mm(header: Dataset) -> float | None:
    value = header.get("SliceThickness")
    if value is None or not math.isfinite(float(value)) or float(value) <= 0:
        return None
    return float(value)


def _patient_id(header: Dataset) -> str | None:
    value = str(header.get("PatientID") or "").strip()
    return None if value.upper() in _NOBODY else value


def _numbers(header: Dataset, keyword: str, count: int) -> list[float]:
    values = [float(value) for value in _sequence(header.get(keyword))]
    if len(values) != count or not all(math.isfinite(value) for value in values):
        raise Skipped(SkipReason.NO_GEOMETRY)
    return values


def _sequence(value: Any) -> Sequence[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, str | bytes | int | float) else list(value)


def is_dicom(path: Path) -> bool:
    """Whether the file has DICOM's preamble. Raises ``OSError`` where it cannot be read."""
    with path.open("rb") as file:
        file.seek(128, os.SEEK_SET)
        return file.read(4) == b"DICM"
