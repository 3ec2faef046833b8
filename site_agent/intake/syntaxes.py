"""Transfer syntaxes that are read, and a file's bytes under them.

Part 5 of the standard, annex A. A deflated file is inflated up to a limit only: half a megabyte can
otherwise become a gigabyte before anything can be checked.
"""

import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import get_decoder
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

_META_BEGINS = 132  # after the preamble and "DICM"
_GROUP_LENGTH_BYTES = 12


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


def transfer_syntax(path: Path) -> tuple[UID, int]:
    """A DICOM file's syntax, and where its dataset begins where the file says so (else 0).

    Raises ``Skipped`` (not-an-image, unsupported-syntax).
    """
    try:
        meta = read_file_meta_info(path)
    except InvalidDicomError:
        raise Skipped(SkipReason.NOT_AN_IMAGE) from None
    if meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise Skipped(SkipReason.NOT_AN_IMAGE)
    syntax = UID(str(meta.get("TransferSyntaxUID", "")))
    if syntax not in ALLOWED or not _is_decodable(syntax):
        raise Skipped(SkipReason.UNSUPPORTED_SYNTAX)
    length = meta.get("FileMetaInformationGroupLength")
    begin = 0 if length is None else _META_BEGINS + _GROUP_LENGTH_BYTES + int(length)
    return syntax, begin


@contextmanager
def dataset_bytes(path: Path, syntax: str, begin: int) -> Iterator[tuple[BinaryIO, int]]:
    """The file, or what a deflated one's dataset inflates to, and its length in bytes.

    Raises ``Skipped`` (too-large, truncated, unreadable).
    """
    with opened(path) as file:
        if syntax != DeflatedExplicitVRLittleEndian:
            yield file, os.fstat(file.fileno()).st_size
            return
        if not begin:
            raise Skipped(SkipReason.UNREADABLE)
        file.seek(begin)
        inflated = _inflated(file.read(MAX_INFLATED_BYTES))
    yield BytesIO(inflated), len(inflated)


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


@cache
def _is_decodable(syntax: UID) -> bool:
    return bool(get_decoder(syntax).is_available)
