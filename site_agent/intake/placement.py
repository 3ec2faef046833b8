"""Where a frame's pixels lie in its file, checked against what is there, and their decoding.

The standard's part 5: native pixels (8.1) lie one frame after the other; compressed ones are
encapsulated in fragments (A.4), whose lengths are walked before any decoder sees them.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels import get_decoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from site_agent.intake.elements import PIXEL_ELEMENT_BYTES, integer, number, text
from site_agent.intake.reasons import Skipped, SkipReason
from site_agent.intake.strictness import STRICT
from site_agent.intake.syntaxes import dataset_bytes, opened

MAX_EDGE_PX = 4096
MIN_EDGE_PX = 16
MAX_FRAMES = 8192

_UNDEFINED = 0xFFFFFFFF
_LITTLE_ENDIAN = frozenset(
    {ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian}
)
_LONG_FORMS = (b"OB", b"OW", b"UN", b"OF", b"OD", b"OL", b"OV")
_MAX_FRAGMENTS = 1 << 17


@dataclass(frozen=True)
class Placement:
    """How to read a file's frames again without parsing its header."""

    __pydantic_config__: ClassVar = STRICT

    syntax: str
    begin: int  # of the dataset, where it is deflated
    offset: int  # of the pixel data's value
    vr: str
    frames: int
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str
    modified_ns: int  # when the file was last written


def placement(
    header: Dataset, file: BinaryIO, length: int, *, syntax: UID, begin: int, modified_ns: int
) -> Placement:
    """Where the pixels are; ``file`` stands where the header ended, and has ``length`` bytes.

    Raises ``Skipped`` (too-large, unreadable, truncated, undecodable).
    """
    rows, columns = integer(header, "Rows") or 0, integer(header, "Columns") or 0
    frames = int(number(header, "NumberOfFrames") or 1)
    bits = integer(header, "BitsAllocated") or 0
    stored_bits = integer(header, "BitsStored") or bits
    if max(rows, columns) > MAX_EDGE_PX or frames > MAX_FRAMES:
        raise Skipped(SkipReason.TOO_LARGE)
    if min(rows, columns) < MIN_EDGE_PX or bits not in (8, 16, 32) or frames < 1:
        raise Skipped(SkipReason.UNREADABLE)
    if not 1 <= stored_bits <= bits:
        raise Skipped(SkipReason.UNREADABLE)
    implicit, little = header.original_encoding
    vr, declared, offset = _pixel_element(file, implicit=bool(implicit), little=bool(little))
    if syntax.is_compressed:
        if declared != _UNDEFINED:
            raise Skipped(SkipReason.UNDECODABLE)
        if _fragments(file, offset, length) < frames:
            raise Skipped(SkipReason.TRUNCATED)
    elif declared > length - offset or declared < frames * rows * columns * bits // 8:
        raise Skipped(SkipReason.TRUNCATED)
    return Placement(
        syntax=str(syntax),
        begin=begin,
        offset=offset,
        vr=vr,
        frames=frames,
        rows=rows,
        columns=columns,
        bits_allocated=bits,
        bits_stored=stored_bits,
        signed=bool(integer(header, "PixelRepresentation") or 0),
        photometric=text(header, "PhotometricInterpretation"),
        modified_ns=modified_ns,
    )


def stored_values(path: Path, place: Placement, frame: int) -> NDArray[np.generic]:
    """The stored values (rows, columns) of one frame.

    Raises ``Skipped`` (undecodable, changed) and what ``dataset_bytes`` does.
    """
    with opened(path) as opened_file:
        if os.fstat(opened_file.fileno()).st_mtime_ns != place.modified_ns:
            raise Skipped(SkipReason.CHANGED)
        file, _ = dataset_bytes(opened_file, place.syntax, place.begin)
        file.seek(place.offset, os.SEEK_SET)
        if place.bits_allocated == 16 and place.syntax in _LITTLE_ENDIAN:
            return _shorts(file, place, frame)
        try:
            stored: NDArray[np.generic]
            stored, _ = get_decoder(UID(place.syntax)).as_array(
                file,
                index=frame,
                rows=place.rows,
                columns=place.columns,
                number_of_frames=place.frames,
                samples_per_pixel=1,
                bits_allocated=place.bits_allocated,
                bits_stored=place.bits_stored,
                pixel_representation=int(place.signed),
                photometric_interpretation=place.photometric,
                pixel_keyword="PixelData",
                pixel_vr=place.vr,
            )
        except MemoryError:
            raise
        except Exception:
            raise Skipped(SkipReason.UNDECODABLE) from None
    if stored.shape != (place.rows, place.columns):
        raise Skipped(SkipReason.UNDECODABLE)
    return stored


def _shorts(file: BinaryIO, place: Placement, frame: int) -> NDArray[np.generic]:
    """Native 16-bit values, which most CT and MR images are: as pydicom reads them, sooner.

    Bits above BitsStored may hold anything (part 5, 8.1.1): they are shifted out.
    """
    stored = np.empty((place.rows, place.columns), "<i2" if place.signed else "<u2")
    file.seek(frame * stored.nbytes, os.SEEK_CUR)
    if file.readinto(stored.data.cast("B")) != stored.nbytes:  # type: ignore[attr-defined]
        raise Skipped(SkipReason.UNDECODABLE)
    unused = 16 - place.bits_stored
    if unused:
        np.left_shift(stored, unused, out=stored)
        np.right_shift(stored, unused, out=stored)
    return stored


def _pixel_element(file: BinaryIO, *, implicit: bool, little: bool) -> tuple[str, int, int]:
    """Value representation and declared length of the pixel data, and where its value begins."""
    order: Literal["little", "big"] = "little" if little else "big"
    begin = file.tell()
    head = file.read(PIXEL_ELEMENT_BYTES)
    if len(head) < PIXEL_ELEMENT_BYTES:
        raise Skipped(SkipReason.TRUNCATED)
    if (int.from_bytes(head[:2], order), int.from_bytes(head[2:4], order)) != (0x7FE0, 0x0010):
        # Pixels as floating point numbers (C.7.6.24) belong to maps, not to CT or MR images.
        raise Skipped(SkipReason.UNDECODABLE)
    if implicit:
        return "OW", int.from_bytes(head[4:8], order), begin + 8
    if head[4:6] not in _LONG_FORMS:
        raise Skipped(SkipReason.UNREADABLE)
    length = int.from_bytes(head[8:12], order)
    return head[4:6].decode("ascii"), length, begin + 12


def _fragments(file: BinaryIO, offset: int, length: int) -> int:
    """How many fragments follow the offset table, all of them whole. Raises ``Skipped``."""
    position, found = offset, -1
    while found < _MAX_FRAGMENTS:
        file.seek(position)
        head = file.read(8)
        size = int.from_bytes(head[4:8], "little")
        if head[:4] == b"\xfe\xff\xdd\xe0" or (not head and found > 0):
            break
        if head[:4] != b"\xfe\xff\x00\xe0" or len(head) < 8 or position + 8 + size > length:
            raise Skipped(SkipReason.TRUNCATED)
        position += 8 + size
        found += 1
    if found < 1:
        raise Skipped(SkipReason.UNDECODABLE)
    return found
