"""Values of the few elements that intake asks for, straight from their bytes.

Part 5 of the standard, 6.2: decimal and integer strings, code strings and UIDs are ASCII, their
values parted by backslashes; unsigned shorts are two bytes. pydicom turns an element into an object
with every rule of its value representation, which takes most of a header's time; only what is not
so plain (text in another character set, an unexpected representation) is left to it.
"""

from collections.abc import Sequence
from io import BytesIO
from typing import BinaryIO

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import UID, ExplicitVRBigEndian, ImplicitVRLittleEndian

from site_agent.intake.enhanced import FUNCTIONAL_GROUPS

_HEADER_TAGS = [
    "AcquisitionDate",
    "AcquisitionDateTime",
    "AcquisitionTime",
    "BitsAllocated",
    "BitsStored",
    "BurnedInAnnotation",
    "Columns",
    "ConvolutionKernel",
    "EchoTime",
    "Exposure",
    "FrameOfReferenceUID",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "ImageType",
    "Manufacturer",
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
    "SOPClassUID",
    "SOPInstanceUID",
    "SamplesPerPixel",
    "SeriesDescription",
    "SeriesInstanceUID",
    "SliceThickness",
    "StudyInstanceUID",
    *FUNCTIONAL_GROUPS,
]
_TAGS: list[BaseTag | int] = [
    tag for keyword in _HEADER_TAGS if (tag := tag_for_keyword(keyword)) is not None
]
_HEAD_BYTES = 64 * 2**10

PIXEL_ELEMENT_BYTES = 12
"""The longest form of what precedes the pixel data's value."""
_PIXEL_TAGS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
_STRINGS = frozenset({None, "CS", "DS", "IS", "LO", "SH", "UI"})
_SHORTS = frozenset({None, "SS", "US"})


def header_elements(source: BinaryIO, syntax: UID) -> Dataset:
    """What intake asks for; ``source`` stands at a dataset's beginning, and then at its pixels."""

    def read(part: BinaryIO) -> Dataset:
        return read_dataset(
            part,
            syntax == ImplicitVRLittleEndian,
            syntax != ExplicitVRBigEndian,
            stop_when=_at_pixels,
            specific_tags=_TAGS,
        )

    begin = source.tell()
    head = source.read(_HEAD_BYTES)
    part = BytesIO(head)  # in memory: pydicom asks a file for its position five times an element
    header = read(part)
    if part.tell() + PIXEL_ELEMENT_BYTES <= len(head):
        source.seek(begin + part.tell())
        return header
    source.seek(begin)
    return read(source)


def _at_pixels(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return tag in _PIXEL_TAGS


def texts(elements: Dataset, keyword: str) -> list[str]:
    """The values of an element as text; none where it is absent or empty."""
    raw = _raw(elements, keyword)
    if raw is not None and raw.VR in _STRINGS:
        value = raw.value or b""
        if value.isascii() and b"\x1b" not in value:  # else in a character set of its own
            text = value.decode("ascii").rstrip(" \0")
            return [part.strip(" \0") for part in text.split("\\")] if text else []
    value = elements.get(keyword)
    if value is None:
        return []
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [str(one) for one in value]
    return [str(value)] if value != "" else []


def text(elements: Dataset, keyword: str) -> str:
    """An element's values as one text, parted by backslashes; empty where it is absent."""
    return "\\".join(texts(elements, keyword))


def numbers(elements: Dataset, keyword: str) -> list[float]:
    """The values of an element of numbers. Raises ``ValueError`` on what is none."""
    return [float(one) for one in texts(elements, keyword)]


def number(elements: Dataset, keyword: str) -> float | None:
    """An element's only value, None where it is absent. Raises ``ValueError`` on several."""
    found = numbers(elements, keyword)
    if len(found) > 1:
        raise ValueError("has several values")
    return found[0] if found else None


def integer(elements: Dataset, keyword: str) -> int | None:
    """An element's only integer, None where it is absent or empty.

    Whether an ambiguous "US or SS" is signed is the caller's to say. Raises ``ValueError``.
    """
    raw = _raw(elements, keyword)
    if raw is not None and raw.VR in _SHORTS and raw.value is not None and len(raw.value) == 2:
        return int.from_bytes(raw.value, "little" if raw.is_little_endian else "big")
    value = elements.get(keyword)
    if value is None or value in ("", b""):
        return None
    return int.from_bytes(value[:2], "little") if isinstance(value, bytes) else int(value)


def _raw(elements: Dataset, keyword: str) -> RawDataElement | None:
    """The element as it was read, None where it is absent or pydicom has converted it."""
    tag = tag_for_keyword(keyword)
    found = None if tag is None else elements.get_item(tag)
    return found if isinstance(found, RawDataElement) else None
