"""Blobs named by their SHA-256, each written once and never changed.

A blob lies at ``ab/abcdef…``. It is written to a temporary file, synced and renamed, so that a name
stands for complete content whatever happens to the process.
"""

import hashlib
import os
import tempfile
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

CHUNK_BYTES = 256 * 2**10


class BlobStore:
    """A folder of blobs, reached through fsspec's local filesystem."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.filesystem = LocalFileSystem(auto_mkdir=False)

    def path(self, sha256: str) -> Path:
        """Where the blob of that hash lies, whether or not it is there."""
        return self.folder / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        """Whether the blob is there."""
        return bool(self.filesystem.isfile(str(self.path(sha256))))

    def put(self, content: bytes) -> str:
        """Stores ``content`` durably and returns its SHA-256 (hex); a second time is free."""
        sha256 = hashlib.sha256(content).hexdigest()
        target = self.path(sha256)
        if self.has(sha256):
            return sha256
        self.filesystem.makedirs(str(target.parent), exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=target.parent)
        os.close(descriptor)
        try:
            with self.filesystem.open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        for folder in (target.parent, self.folder):
            _sync_folder(folder)
        return sha256

    def read(self, sha256: str) -> bytes:
        """The whole blob; raises ``FileNotFoundError``."""
        content = self.filesystem.cat_file(str(self.path(sha256)))
        if not isinstance(content, bytes):
            raise TypeError("a blob is bytes")
        return content


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
