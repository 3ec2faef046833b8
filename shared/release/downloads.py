"""The files of a release, several at once, into a folder that outlives the process.

What came of a file stays in the cache when the connection, the process or the machine ends, and the
next download goes on behind it. A file counts once its SHA-256 is the signed one; bytes of an
earlier run that turn out wrong are fetched anew once.
"""

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue

from shared.release.errors import LocalError, NetworkError, TamperedFileError
from shared.release.manifest import ReleaseFile, verify_file
from shared.release.transfer import Session, transfer

FILES_AT_ONCE = 4
STOP_SECONDS = 2.0
"""How long a worker that hangs in a read is waited for, once it has to stop."""

Progress = Callable[[int, int], None]
"""Called with the bytes had and the bytes expected in all."""


def fetch_files(
    session: Session,
    files: Sequence[ReleaseFile],
    *,
    folder: Path,
    address: Callable[[str], str],
    on_progress: Progress | None = None,
) -> None:
    """Fetches ``files`` into ``folder`` and checks each; ``address`` is the URL of a file's name.

    Raises the ``ReleaseError`` of the first that failed, ``LocalError`` where the disk is full.
    """
    lock = threading.Lock()
    had, total = 0, sum(file.bytes for file in files)

    def count(change: int) -> None:
        nonlocal had
        with lock:
            had += change
            if on_progress is not None:
                on_progress(had, total)

    _refuse_full_disk(folder, files)
    tasks: SimpleQueue[ReleaseFile] = SimpleQueue()
    for file in sorted(files, key=lambda file: -file.bytes):  # the longest first
        tasks.put(file)
    failures: list[BaseException] = []

    def work() -> None:
        while not session.stop.is_set():
            try:
                file = tasks.get_nowait()
            except Empty:
                return
            try:
                _fetch(session, file, folder=folder, address=address(file.path), count=count)
            except BaseException as failure:
                failures.append(failure)
                session.stop.set()

    # Daemons: a Ctrl-C must not wait for a server that says nothing.
    workers = [threading.Thread(target=work, daemon=True) for _ in range(FILES_AT_ONCE)]
    try:
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers) and not failures:
            for worker in workers:
                worker.join(0.05)  # a join without end would not hear Ctrl-C
    finally:
        session.stop.set()
        for worker in workers:
            worker.join(STOP_SECONDS)
    for failure in failures:
        if isinstance(failure, OSError):
            raise LocalError(str(folder), f"cannot be written ({failure.strerror})") from None
        raise failure


def _refuse_full_disk(folder: Path, files: Sequence[ReleaseFile]) -> None:
    there = sum(path.stat().st_size for path in folder.iterdir())
    needed = sum(file.bytes for file in files) - there
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if needed > free:
        raise LocalError(
            str(folder),
            f"has {free} bytes free, the release takes {needed} more",
            "make room, or name a larger cache in XDG_CACHE_HOME",
        )


def _fetch(
    session: Session,
    file: ReleaseFile,
    *,
    folder: Path,
    address: str,
    count: Callable[[int], None],
) -> None:
    path = folder / file.path
    with path.open("ab") as sink:
        if sink.tell() > file.bytes:
            sink.truncate(0)
        begun = sink.seek(0, os.SEEK_END)
    count(begun)
    if begun < file.bytes or not begun:
        _transfer(session, file, path=path, address=address, count=count)
    try:
        verify_file(path, file)
    except TamperedFileError:
        if not begun:
            raise
        count(-file.bytes)
        path.write_bytes(b"")  # what an earlier run left was not it
        _transfer(session, file, path=path, address=address, count=count)
        verify_file(path, file)


def _transfer(
    session: Session,
    file: ReleaseFile,
    *,
    path: Path,
    address: str,
    count: Callable[[int], None],
) -> None:
    if session.stop.is_set():
        raise NetworkError(file.path, "was stopped")
    with path.open("r+b", buffering=0) as sink:
        transfer(
            session,
            address,
            name=file.path,
            sink=sink,
            limit=file.bytes,
            expected=file.bytes,
            etag=f'"{file.sha256}"',
            on_bytes=count,
        )
