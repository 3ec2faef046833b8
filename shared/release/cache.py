"""The user's cache: parts of downloads that were interrupted, and releases opened by address.

It lies in ``fedstill`` below ``XDG_CACHE_HOME`` (``~/.cache`` by default), private to the user.
``downloads/DIGEST`` holds what came of one release and lives until the release is whole; parts that
nobody went on with for a week, or beyond the four latest, are removed. ``releases`` holds whole
releases. All of it may be deleted at any time.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

KEEP_SECONDS = 7 * 24 * 3600.0
KEEP_PARTS = 4
"""Interrupted downloads kept, the one under way included."""


def cache_folder() -> Path:
    """The cache; may not exist yet."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The specification of XDG_CACHE_HOME has relative paths ignored.
    return (base if base.is_absolute() else Path.home() / ".cache") / "fedstill"


@contextmanager
def partial_folder(digest: str, *, say: Callable[[str], None]) -> Iterator[Path]:
    """The folder of what came of a release, held against others until the end.

    Waits where another process downloads the same release. Raises ``OSError``.
    """
    folder = cache_folder() / "downloads" / digest
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _tidy(folder.parent, spare=folder)
    descriptor = _hold(folder, say=say)
    try:
        os.utime(folder)
        yield folder
    finally:
        os.close(descriptor)


def _hold(folder: Path, *, say: Callable[[str], None]) -> int:
    said = False
    while True:
        folder.mkdir(exist_ok=True, mode=0o700)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # another process moved it to its destination just now
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except BlockingIOError:
            if not said:
                say("another process downloads this release: waiting for it")
                said = True
            time.sleep(0.2)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _tidy(parts: Path, *, spare: Path) -> None:
    """Removes old parts that no process holds."""
    ages = []
    for folder in parts.iterdir():
        if folder != spare and folder.is_dir() and not folder.is_symlink():
            try:
                ages.append((time.time() - folder.stat().st_mtime, folder))
            except FileNotFoundError:
                continue
    for place, (age, folder) in enumerate(sorted(ages), start=1):
        if age <= KEEP_SECONDS and place < KEEP_PARTS:
            continue
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)
