"""The spool: received DICOM objects as files that intake reads like any folder.

An object is written to a hidden name, synced, and renamed, so that a reader sees it whole or not at
all. Its name is a keyed hash of its SOPInstanceUID: the same object comes once, a name says
nothing, and nobody without the site's pseudonym key can look for a known UID. Hidden files of a
process that was killed are removed when the next one starts.
"""

import errno
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from shared.durable import sync_folder

SUFFIX = ".dcm"
_PART = ".part"
_RECOUNT_S = 30.0  # another importer may fill the same spool, and its owner empties it
_UID = re.compile(r"[0-9][0-9.]{0,63}")


class SpoolError(ValueError):
    """A spool that cannot be used; the text names the folder and the fix."""


class RefusedObjectError(Exception):
    """An object that the spool does not take, with the setting that says so and nothing of it."""

    code = "refused"


class TooLargeError(RefusedObjectError):
    """Beyond ``importer.max_object_mb``."""

    code = "too-large"


class FullError(RefusedObjectError):
    """Beyond ``importer.quota_gb``, or the disk is full."""

    code = "spool-full"


class BadUidError(RefusedObjectError):
    """Without a SOPInstanceUID of digits and dots."""

    code = "bad-uid"


class Spool:
    """An open spool. Safe for several threads, and for several processes on one folder."""

    def __init__(
        self,
        folder: Path,
        *,
        key: bytes,
        quota_bytes: int,
        max_object_bytes: int,
        group_reads: bool = False,
    ) -> None:
        """Opens the spool in ``folder``, made if it is not there; ``key`` names its files.

        Only this user may read it, and its group where ``group_reads``.

        Raises ``SpoolError`` where the folder cannot be written, or is open to other users.
        """
        self.folder = folder
        self._key = key
        self._quota = quota_bytes
        self._mode = 0o640 if group_reads else 0o600
        self.max_object_bytes = max_object_bytes
        self._lock = threading.Lock()
        self._counted_at = -_RECOUNT_S
        self._used = 0
        self._writing = 0
        try:
            if not folder.exists():
                folder.mkdir(mode=0o700, parents=True)
                folder.chmod(0o750 if group_reads else 0o700)
            if folder.stat().st_mode & (0o027 if group_reads else 0o077):
                raise SpoolError(
                    f"{folder}: other users may read it; chmod {'750' if group_reads else '700'} "
                    "it, or set importer.spool to a folder of its own"
                )
            self._remove_leftovers()
        except OSError as error:
            raise SpoolError(
                f"{folder}: cannot be written ({error.strerror}); set importer.spool to a folder "
                "of this user"
            ) from None

    def holds(self, uid: str) -> bool:
        """Whether the object with this SOPInstanceUID is there. Raises ``BadUidError``."""
        return self._path(uid).exists()

    @contextmanager
    def part(self) -> Iterator["Part"]:
        """An object to write; what is not kept with ``Part.keep`` is gone afterwards.

        Raises ``FullError`` where the disk is full.
        """
        path = self.folder / f".{secrets.token_hex(16)}{_PART}"
        with _disk():
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        part = None
        try:
            with os.fdopen(descriptor, "wb") as file:
                # Tells a process that starts now that this one is alive.
                fcntl.flock(file.fileno(), fcntl.LOCK_EX)
                part = Part(self, path, file)
                yield part
        except OSError as error:
            # Closing writes what was left.
            raise FullError if error.errno in _NO_SPACE else error from None
        finally:
            path.unlink(missing_ok=True)
            with self._lock:
                self._writing -= part.size if part is not None else 0

    def reserve(self, count: int, *, size: int) -> None:
        """Room for ``count`` more bytes of an object that then has ``size``.

        Raises ``TooLargeError``, ``FullError``.
        """
        if size > self.max_object_bytes:
            raise TooLargeError
        with self._lock:
            if time.monotonic() - self._counted_at >= _RECOUNT_S:
                self._used = self._count()
                self._counted_at = time.monotonic()
            if self._used + self._writing + count > self._quota:
                raise FullError
            self._writing += count

    def keep(self, part: "Part", uid: str) -> bool:
        """Gives a written part its name. Returns False where the object was there already."""
        path = self._path(uid)
        if path.exists():
            return False
        with _disk():
            part.path.chmod(self._mode)
            part.path.replace(path)
            sync_folder(self.folder)
        with self._lock:
            self._used += part.size
        return True

    def _path(self, uid: str) -> Path:
        if not _UID.fullmatch(uid):
            raise BadUidError
        name = hmac.new(self._key, b"fedstill spool\0" + uid.encode(), hashlib.sha256).hexdigest()
        return self.folder / f"{name[:40]}{SUFFIX}"

    def _count(self) -> int:
        used = 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                try:
                    # Parts of this process are counted as they grow.
                    used += 0 if entry.name.endswith(_PART) else entry.stat().st_size
                except FileNotFoundError:
                    continue
        return used

    def _remove_leftovers(self) -> None:
        for path in self.folder.glob(f".*{_PART}"):
            try:
                with path.open("rb") as file:
                    fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)
            except (BlockingIOError, FileNotFoundError):
                continue


class Part:
    """An object on its way into the spool."""

    def __init__(self, spool: Spool, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self.size = 0
        self._spool = spool
        self._file = file

    def write(self, data: bytes | memoryview) -> None:
        """Appends. Raises ``TooLargeError``, ``FullError``."""
        self._spool.reserve(len(data), size=self.size + len(data))
        self.size += len(data)
        with _disk():
            self._file.write(data)

    def flush(self) -> None:
        """Lets others read ``path`` as far as it is written. Raises ``FullError``."""
        with _disk():
            self._file.flush()

    def keep(self, uid: str) -> bool:
        """Makes it the object with this SOPInstanceUID; it survives a crash from here on.

        Returns False where that object was there already: the first one stays. Raises
        ``BadUidError``, ``FullError``.
        """
        if self._spool.holds(uid):
            return False
        self.flush()
        with _disk():
            os.fsync(self._file.fileno())
        return self._spool.keep(self, uid)


_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def _disk() -> Iterator[None]:
    """A full disk is a full spool."""
    try:
        yield
    except OSError as error:
        raise FullError if error.errno in _NO_SPACE else error from None
