"""Blobs named by their SHA-256, each written once and never changed.

A blob lies at ``ab/abcdef…``. It is written to a temporary file, synced and renamed, so that a name
stands for complete content whatever happens to the process.
"""

import hashlib
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from shared.durable import write_durably

CHUNK_BYTES = 256 * 2**10


class BlobStore:
    """A folder of blobs, read through fsspec's local filesystem."""

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
        write_durably(target, content)
        return sha256
