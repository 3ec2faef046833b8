"""Blobs named by their SHA-256, each written once and never changed.

A blob lies at ``ab/abcdef…``, in a folder or, by URL, wherever fsspec reaches: ``s3://bucket/a``.
In a folder it is written to a temporary file, synced and renamed; a bucket shows an object when it
has all of it. So a name stands for complete content whatever happens to the process, and what was
written is read back before it counts.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from shared.durable import write_durably

CHUNK_BYTES = 256 * 2**10
BLOCK_BYTES = 4 * 2**20
"""What one question to a bucket asks for at most."""


class StoreError(RuntimeError):
    """A storage that does not do what it is asked; names it and the fix."""


class BlobStore:
    """A folder, or a bucket by URL, of blobs."""

    def __init__(self, address: Path | str) -> None:
        """Opens nothing yet; raises ``StoreError`` for a URL that nothing here can read."""
        self.name = str(address)
        self.folder: Path | None = None
        """Where the blobs lie on this machine; None in a bucket."""
        if isinstance(address, Path) or "://" not in address:
            self.folder = Path(address)
            self._filesystem, self._root = LocalFileSystem(), self.name
            return
        try:
            # A listing that is remembered would hide what another process has stored since.
            self._filesystem, self._root = url_to_fs(self.name, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StoreError(
                f"storage {self.name}: {error} (for s3://: install fedstill[s3])"
            ) from None

    def path(self, sha256: str) -> Path | None:
        """Where the blob of that hash lies in the folder, there or not; None in a bucket."""
        return None if self.folder is None else self.folder / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        """Whether the blob is there; raises ``StoreError`` where that cannot be known."""
        with self._errors():
            return bool(self._filesystem.isfile(self._key(sha256)))

    def reached(self) -> bool:
        """Whether the bucket is there, or the folder can be written to, or made.

        Raises ``StoreError`` where that cannot be known.
        """
        if self.folder is not None:
            folder = self.folder
            while not folder.exists() and folder != folder.parent:
                folder = folder.parent
            return folder.is_dir() and os.access(folder, os.R_OK | os.W_OK | os.X_OK)
        with self._errors():
            return bool(self._filesystem.exists(self._root.partition("/")[0] or "/"))

    def put(self, content: bytes) -> str:
        """Stores ``content`` durably and returns its SHA-256 (hex); a second time writes nothing.

        Raises ``StoreError`` where what is read back differs, ``OSError`` where a folder is full.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        if self.has(sha256) and self._intact(sha256):
            return sha256
        path = self.path(sha256)
        if path is not None:
            write_durably(path, content)
        else:
            with self._errors():
                self._filesystem.pipe_file(self._key(sha256), content)
        if not self._intact(sha256):
            raise StoreError(f"storage {self.name}: gave back other bytes than it was given")
        return sha256

    def read(self, sha256: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from ``start`` up to ``end``, in chunks; opened before the first is asked for.

        Raises ``StoreError`` where the blob is missing or shorter than ``end``.
        """
        chunks = self._chunks(sha256, start=start, end=end)
        next(chunks)  # opens the file
        return chunks

    def _chunks(self, sha256: str, *, start: int, end: int | None) -> Iterator[bytes]:
        block = BLOCK_BYTES if end is None else min(BLOCK_BYTES, max(end - start, 1))
        with (
            self._errors(),
            self._filesystem.open(self._key(sha256), "rb", block_size=block) as file,
        ):
            file.seek(start)
            yield b""
            left = end - start if end is not None else None
            while left is None or left > 0:
                chunk = file.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
                if not chunk and left is None:
                    return
                if not chunk:
                    raise StoreError(f"storage {self.name}: a blob is shorter than was stored")
                left = None if left is None else left - len(chunk)
                yield chunk

    def _intact(self, sha256: str) -> bool:
        found = hashlib.sha256()
        for chunk in self.read(sha256):
            found.update(chunk)
        return found.hexdigest() == sha256

    def _key(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{sha256}"

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What a filesystem of fsspec's raises has no common class: here it gets one."""
        try:
            yield
        except FileNotFoundError:
            raise StoreError(
                f"storage {self.name}: a blob or the bucket is missing: restore it from a backup"
            ) from None
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(
                f"storage {self.name}: {type(error).__name__}: {error}; check `storage` in"
                " aggregator.toml, the endpoint and the credentials"
            ) from error
