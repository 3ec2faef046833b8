"""CT and MR slices from DICOM files: header first, pixels only of what is needed.

Part 3 of the standard, CT Image module (C.8.2.1): stored values times RescaleSlope plus
RescaleIntercept are Hounsfield units, whatever PhotometricInterpretation says of their display, so
MONOCHROME1 is not inverted there. MR signal has no unit: slope and intercept only take back what a
scanner scaled each slice by, and MONOCHROME1, whose low values are bright, is inverted.

Only the readers' processes call this module's functions: the identifiers that a ``DicomSlice``
brings are hashed as soon as they arrive (``intake.headers``).
"""

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
)

from site_agent.intake.acquisition import Acquisition, acquisition
from site_agent.intake.elements import header_elements, integer, number, numbers, text, texts
from site_agent.intake.enhanced import frame_headers
from site_agent.intake.geometry import Plane, axial_plane
from site_agent.intake.hounsfield import hounsfield, padded
from site_agent.intake.placement import Placement, placement, stored_values
from site_agent.intake.reasons import Skipped, SkipReason
from site_agent.intake.sequences import names_sequence
from site_agent.intake.strictness import STRICT
from site_agent.intake.syntaxes import dataset_bytes, opened, transfer_syntax

Modality = Literal["CT", "MR"]

SINGLE_FRAME = frozenset({CTImageStorage, MRImageStorage})
ENHANCED = frozenset(
    {
        EnhancedCTImageStorage,
        EnhancedMRImageStorage,
        LegacyConvertedEnhancedCTImageStorage,
        LegacyConvertedEnhancedMRImageStorage,
    }
)
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and what it begins: its multi-frame kinds
MAX_IDENTIFIER = 1024

# Identifiers that de-identification tools give to everybody: they name no one patient.
_NOBODY = {"", "NONE", "UNKNOWN", "ANON", "ANONYMOUS", "ANONYMIZED", "ANONYMISED", "REMOVED"}

# pydicom's log lines and warnings repeat tag values, patients' names among them.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)


@dataclass(frozen=True)
class DicomSlice:
    """What is known of a slice, a file's ``number``-th frame, before its pixels are read."""

    __pydantic_config__: ClassVar = STRICT

    path: Path
    number: int
    place: Placement
    patient_id: str | None
    series: str  # of MR an echo of a series: echoes are contrasts of their own
    study: str
    acquired: str  # when, where the file tells: reconstructions of one scan agree
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
    padding: tuple[int, int] | None
    acquisition: Acquisition


def read_headers(
    path: Path, *, modality: Modality = "CT", sequence: str | None = None
) -> tuple[list[DicomSlice], list[SkipReason]]:
    """Reads everything but the pixels: a file's slices, and a code for each frame that is none.

    ``sequence`` is looked for in the series' name, of which nothing is kept. Raises ``Skipped``
    with the reason where the file holds no axial slice of ``modality`` that can be read.
    """
    with _reading(), opened(path) as file:
        modified_ns = os.fstat(file.fileno()).st_mtime_ns
        syntax, begin = transfer_syntax(file)
        source, length = dataset_bytes(file, syntax, begin)
        header = header_elements(source, syntax)
        kind = _refuse_unwanted(header, modality)
        if sequence is not None and not any(
            names_sequence(text(header, keyword), sequence)
            for keyword in ("ProtocolName", "SeriesDescription")
        ):
            raise Skipped(SkipReason.OTHER_SEQUENCE)
        place = placement(
            header, source, length, syntax=syntax, begin=begin, modified_ns=modified_ns
        )
        if kind in SINGLE_FRAME:
            return [_slice(path, header, header, 0, place, modality)], []
        slices, refused = [], []
        for number, frame in enumerate(frame_headers(header, frames=place.frames)):
            try:
                slices.append(_slice(path, header, frame, number, place, modality))
            except Skipped as skipped:
                refused.append(skipped.reason)
        if not slices:
            raise Skipped(refused[0])
        return slices, refused


def read_header(
    path: Path, *, modality: Modality = "CT", sequence: str | None = None
) -> DicomSlice:
    """The first slice of ``read_headers``."""
    return read_headers(path, modality=modality, sequence=sequence)[0][0]


def read_pixels(header: DicomSlice) -> NDArray[np.int16]:
    """Reads a CT slice in Hounsfield units, turned for axial display, (rows, columns).

    Raises ``Skipped`` (undecodable, unreadable, changed).
    """
    with _reading():
        return header.plane.display(
            hounsfield(
                stored_values(header.path, header.place, header.number),
                slope=header.slope,
                intercept=header.intercept,
                bits_allocated=header.place.bits_allocated,
                padding=header.padding,
            )
        )


def read_signal(header: DicomSlice) -> NDArray[np.float32]:
    """Reads an MR slice on the scanner's scale, turned for axial display; padding becomes 0.

    Raises ``Skipped`` (undecodable, unreadable, changed).
    """
    with _reading():
        place = header.place
        stored = stored_values(header.path, place, header.number)
        values = stored.astype(np.float64)
        if place.photometric == "MONOCHROME1":
            values = (-1.0 if place.signed else 2.0**place.bits_stored - 1) - values
        signal = values * header.slope + header.intercept
        if header.padding is not None:
            signal[padded(stored, header.padding, bits_allocated=place.bits_allocated)] = 0.0
        return header.plane.display(signal.astype(np.float32))


@contextmanager
def _reading() -> Iterator[None]:
    """Turns whatever goes wrong with a file into a code: its text may repeat what the file says."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (Skipped, MemoryError):
        raise
    except Exception:
        raise Skipped(SkipReason.UNREADABLE) from None


def _slice(
    path: Path, header: Dataset, frame: Dataset, number: int, place: Placement, modality: Modality
) -> DicomSlice:
    """A slice by the elements of its ``frame``; those of the whole object are ``header``'s."""
    image_type = [part.upper() for part in texts(frame, "ImageType")]
    if "LOCALIZER" in image_type or "SCOUT" in image_type:
        raise Skipped(SkipReason.LOCALISER)
    orientation = _numbers(frame, "ImageOrientationPatient", 6)
    corner = _numbers(frame, "ImagePositionPatient", 3)
    plane = axial_plane(orientation)
    spacing = _numbers(frame, "PixelSpacing", 2)
    if min(spacing) <= 0:
        raise Skipped(SkipReason.NO_GEOMETRY)
    slope, intercept = _rescale(frame, modality)
    series = _identifier(header, "SeriesInstanceUID")
    if modality == "MR":
        series = f"{series} {text(frame, 'EchoTime') or 0}"
    if "StackID" in frame:
        series = f"{series} {frame.StackID}"[:MAX_IDENTIFIER]
    return DicomSlice(
        path=path,
        number=number,
        place=place,
        patient_id=_patient_id(header),
        series=series,
        study=_identifier(header, "StudyInstanceUID"),
        acquired=_acquired(header),
        instance=_identifier(header, "SOPInstanceUID"),
        frame=_identifier(header, "FrameOfReferenceUID"),
        plane=plane,
        orientation=tuple(orientation),
        corner_mm=tuple(corner),
        position_mm=plane.position_mm(corner),
        thickness_mm=_thickness_mm(frame),
        spacing_mm=(spacing[1], spacing[0]) if plane.transpose else (spacing[0], spacing[1]),
        shape=(place.columns, place.rows) if plane.transpose else (place.rows, place.columns),
        slope=slope,
        intercept=intercept,
        padding=_padding(header),
        acquisition=acquisition(header, frame),
    )


def _refuse_unwanted(header: Dataset, modality: Modality) -> str:
    """Refuses what the header says of the whole object; gives its SOP class."""
    kind = text(header, "SOPClassUID")
    if kind == _SECONDARY_CAPTURE or kind.startswith(_SECONDARY_CAPTURE + "."):
        raise Skipped(SkipReason.SECONDARY_CAPTURE)
    if kind not in SINGLE_FRAME | ENHANCED:
        raise Skipped(SkipReason.UNSUPPORTED_CLASS)
    if text(header, "Modality").upper() != modality:
        raise Skipped(SkipReason.NOT_CT if modality == "CT" else SkipReason.NOT_MR)
    if kind in SINGLE_FRAME and (number(header, "NumberOfFrames") or 1) != 1:
        raise Skipped(SkipReason.MULTI_FRAME)
    photometric = text(header, "PhotometricInterpretation")
    greyscale = photometric in ("MONOCHROME1", "MONOCHROME2")
    if (integer(header, "SamplesPerPixel") or 1) != 1 or not greyscale:
        raise Skipped(SkipReason.NOT_GREYSCALE)
    if text(header, "BurnedInAnnotation").upper() == "YES":
        raise Skipped(SkipReason.BURNED_IN)
    return kind


def _rescale(frame: Dataset, modality: Modality) -> tuple[float, float]:
    slope, intercept = number(frame, "RescaleSlope"), number(frame, "RescaleIntercept")
    if modality == "MR":
        # Optional in an MR image, and in no unit.
        slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
        usable = math.isfinite(slope) and math.isfinite(intercept) and slope > 0
        return (slope, intercept) if usable else (1.0, 0.0)
    # Absent means HU in a CT image (C.8.2.1); scanners spell it in their own ways.
    kind = (text(frame, "RescaleType") or "HU").upper()
    if not kind.startswith(("HU", "HOUN")):
        raise Skipped(SkipReason.NOT_HOUNSFIELD)
    if slope is None or intercept is None:
        raise Skipped(SkipReason.NOT_HOUNSFIELD)
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope > 0):
        raise Skipped(SkipReason.NOT_HOUNSFIELD)
    return slope, intercept


def _padding(header: Dataset) -> tuple[int, int] | None:
    value = integer(header, "PixelPaddingValue")
    if value is None:
        return None
    limit = integer(header, "PixelPaddingRangeLimit")
    return value, value if limit is None else limit


def _thickness_mm(frame: Dataset) -> float | None:
    value = number(frame, "SliceThickness")
    return value if value is not None and math.isfinite(value) and value > 0 else None


def _patient_id(header: Dataset) -> str | None:
    value = _identifier(header, "PatientID").strip()
    return None if value.upper() in _NOBODY else value


def _acquired(header: Dataset) -> str:
    """Date and time of acquisition; empty where there is no time."""
    try:
        moment = text(header, "AcquisitionDateTime")
        time = text(header, "AcquisitionTime")
        moment = moment or (time and text(header, "AcquisitionDate") + time)
    except Exception:  # what cannot be read says nothing
        return ""
    return moment[:MAX_IDENTIFIER]


def _identifier(header: Dataset, keyword: str) -> str:
    value = text(header, keyword)
    if len(value) > MAX_IDENTIFIER // 2:
        raise Skipped(SkipReason.UNREADABLE)
    return value


def _numbers(frame: Dataset, keyword: str, count: int) -> list[float]:
    values = numbers(frame, keyword)
    if len(values) != count or not all(math.isfinite(value) for value in values):
        raise Skipped(SkipReason.NO_GEOMETRY)
    return values


def is_dicom(path: Path) -> bool:
    """Whether the file has DICOM's preamble. Raises ``OSError`` or ``Skipped``."""
    with opened(path) as file:
        file.seek(128, os.SEEK_SET)
        return file.read(4) == b"DICM"
