"""Transfer syntaxes that are read, and a file's bytes under them.

Part 5 of the standard, annex A. A deflated file is inflated up to a limit only: half a megabyte can
otherwise become a gigabyte before anything can be checked.
"""

import os
import stat
import zlib
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom.filereader import read_dataset
from pydicom.pixels import get_decoder
from pydicom.tag import BaseTag
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    MediaStorageDirectoryStorage,
    RLELossless,
)

from site_agent.intake.elements import text
from site_agent.intake.reasons import Skipped, SkipReason

MAX_FILE_BYTES = 2 * 2**30
"""Largest file that is opened: an enhanced object of a whole study, of which frames are read."""
MAX_INFLATED_BYTES = 192 * 2**20
"""What a deflated file may become."""

ALLOWED = frozenset(
    {
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLossless,
        JPEGLosslessSV1,
        JPEGLSLossless,
        JPEGLSNearLossless,
        JPEG2000Lossless,
        JPEG2000,
    }
)

_PREAMBLE_BYTES, _PREFIX = 128, b"DICM"
_GROUP_LENGTH_BYTES = 12
_META_TAGS: list[BaseTag | int] = [0x00020000, 0x00020002, 0x00020010]


def opened(path: Path) -> BinaryIO:
    """Opens a regular file without waiting for anybody. Raises ``Skipped`` or ``OSError``."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    information = os.fstat(file.fileno())
    if not stat.S_ISREG(information.st_mode):
        file.close()
        raise Skipped(SkipReason.NOT_AN_IMAGE)
    if information.st_size > MAX_FILE_BYTES:
        file.close()
        raise Skipped(SkipReason.TOO_LARGE)
    return file


def transfer_syntax(file: BinaryIO) -> tuple[UID, int]:
    """An open DICOM file's syntax, and where its dataset begins: there ``file`` stands then.

    Raises ``Skipped`` (not-an-image, unsupported-syntax).
    """
    file.seek(_PREAMBLE_BYTES)
    if file.read(len(_PREFIX)) != _PREFIX:
        raise Skipped(SkipReason.NOT_AN_IMAGE)
    meta = read_dataset(file, False, True, stop_when=_after_meta, specific_tags=_META_TAGS)
    if text(meta, "MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise Skipped(SkipReason.NOT_AN_IMAGE)
    syntax = UID(text(meta, "TransferSyntaxUID"))
    if syntax not in ALLOWED or not _is_decodable(syntax):
        raise Skipped(SkipReason.UNSUPPORTED_SYNTAX)
    if syntax != DeflatedExplicitVRLittleEndian:
        return syntax, file.tell()
    length = meta.get("FileMetaInformationGroupLength")
    if length is None:  # what follows is not DICOM yet: nothing else says where it begins
        raise Skipped(SkipReason.UNREADABLE)
    return syntax, _PREAMBLE_BYTES + len(_PREFIX) + _GROUP_LENGTH_BYTES + int(length)


def dataset_bytes(file: BinaryIO, syntax: str, begin: int) -> tuple[BinaryIO, int]:
    """The open file at its dataset, or what a deflated one's inflates to; its length in bytes.

    Raises ``Skipped`` (too-large, truncated, unreadable).
    """
    file.seek(begin)
    if syntax != DeflatedExplicitVRLittleEndian:
        return file, os.fstat(file.fileno()).st_size
    inflated = _inflated(file.read(MAX_INFLATED_BYTES))
    return BytesIO(inflated), len(inflated)


def _inflated(deflated: bytes) -> bytes:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = stream.decompress(deflated, MAX_INFLATED_BYTES)
    except zlib.error:
        raise Skipped(SkipReason.UNREADABLE) from None
    if stream.eof:
        return inflated
    full = len(inflated) >= MAX_INFLATED_BYTES
    raise Skipped(SkipReason.TOO_LARGE if full else SkipReason.TRUNCATED)


def _after_meta(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return bool(tag >> 16 != 2)


@cache
def _is_decodable(syntax: UID) -> bool:
    return bool(get_decoder(syntax).is_available)
