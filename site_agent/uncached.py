"""Writing a large file past the page cache.

A cohort is written once and read later, if at all. Through the page cache its writing would cost
more processor time than reading the images does, and push out of memory what others need.
"""

import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

_ROOM_BYTES = 4 * 2**20
_BLOCK_BYTES = 4096  # what addresses, offsets and lengths are multiples of


class UncachedFile:
    """A new file (mode 0600) that is written from its beginning to its end, then synced.

    Where the file system does not write past the cache (Linux's O_DIRECT), through it. Raises
    ``OSError``, ``FileExistsError`` among them.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)
        try:
            direct = os.open(path, os.O_WRONLY | os.O_CLOEXEC | getattr(os, "O_DIRECT", 0))
        except OSError:  # memory and some network file systems have no such thing
            pass
        else:
            os.close(self._descriptor)
            self._descriptor = direct
        # Each begins on a page, as O_DIRECT asks; one is filled while the other is written.
        self._rooms = [mmap.mmap(-1, _ROOM_BYTES) for _ in range(2)]
        self._views = [memoryview(room) for room in self._rooms]
        self._filled = 0
        self._bytes = 0
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="uncached")
        self._written: Future[None] | None = None

    def write(self, content: bytes | memoryview) -> int:
        """Appends bytes, and says how many."""
        content = memoryview(content).cast("B")
        taken = len(content)
        self._bytes += taken
        while len(content):
            some = min(len(content), _ROOM_BYTES - self._filled)
            self._views[0][self._filled : self._filled + some] = content[:some]
            self._filled += some
            content = content[some:]
            if self._filled == _ROOM_BYTES:
                self._flush()
        return taken

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._flush()
                self._await()
                os.ftruncate(self._descriptor, self._bytes)
                os.fsync(self._descriptor)
        finally:
            self._writer.shutdown(wait=True)
            os.close(self._descriptor)
            for view in self._views:
                view.release()
            for room in self._rooms:
                room.close()

    def _flush(self) -> None:
        """Has written what is there, with zeros up to a whole block: they are cut off at the end.

        Raises what went wrong with what was written before.
        """
        whole = -(-self._filled // _BLOCK_BYTES) * _BLOCK_BYTES
        self._views[0][self._filled : whole] = bytes(whole - self._filled)
        self._await()
        self._written = self._writer.submit(self._write_all, self._views[0][:whole])
        self._views.reverse()
        self._filled = 0

    def _await(self) -> None:
        if self._written is not None:
            self._written.result()

    def _write_all(self, content: memoryview) -> None:
        with content:
            done = 0
            while done < len(content):
                with content[done:] as left:
                    done += os.write(self._descriptor, left)
