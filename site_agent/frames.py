"""Length-prefixed frames on the worker's Unix socket.

A frame is 8 bytes of big-endian length and that many bytes of payload. The standard library alone,
so that the Flower client process can use it and stay small.
"""

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_FRAME_BYTES = 256 * 2**20 + 4096
"""Largest frame either side accepts, bytes: the largest message and some room."""

_LENGTH = struct.Struct(">Q")
_CHUNK_BYTES = 1 << 20
# sockaddr_un.sun_path holds 108 bytes with its closing NUL.
_SUN_PATH_BYTES = 107


class FrameError(ConnectionError):
    """The peer sent no complete frame, or one above the limit."""


def send_frame(sock: socket.socket, payload: bytes) -> None:
    """Sends one frame."""
    sock.sendall(_LENGTH.pack(len(payload)))
    sock.sendall(payload)


def recv_frame(sock: socket.socket, *, limit: int, timeout_s: float | None = None) -> bytes:
    """Receives one frame of at most ``limit`` bytes, within ``timeout_s`` in all.

    Raises ``FrameError`` where the peer hangs up early or announces more than ``limit``, and
    ``TimeoutError`` where it is too slow.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    (length,) = _LENGTH.unpack(_receive(sock, _LENGTH.size, deadline))
    if length > limit:
        raise FrameError(f"frame of {length} bytes exceeds {limit}")
    return _receive(sock, length, deadline)


def _receive(sock: socket.socket, length: int, deadline: float | None) -> bytes:
    # Grows with what arrives: an announced length alone reserves no memory.
    received = bytearray()
    while len(received) < length:
        if deadline is not None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("the peer did not send a frame in time")
            sock.settimeout(left_s)
        chunk = sock.recv(min(length - len(received), _CHUNK_BYTES))
        if not chunk:
            raise FrameError("connection closed inside a frame")
        received += chunk
    return bytes(received)


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """The address to bind or connect for ``path``, short enough for the kernel.

    A Unix socket's path may have 107 bytes; a deeper folder is reached through ``/proc/self/fd``.
    Raises ``FrameError`` where that is not possible either.
    """
    if len(os.fsencode(path)) <= _SUN_PATH_BYTES:
        yield str(path)
        return
    if not Path("/proc/self/fd").is_dir():
        raise FrameError(
            f"the socket's path has more than {_SUN_PATH_BYTES} bytes: choose a shorter --home"
        )
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def call(socket_path: Path, payload: bytes, *, timeout_s: float) -> bytes:
    """Sends ``payload`` to the worker and returns its answer.

    Raises ``OSError`` where nothing listens, ``TimeoutError`` after ``timeout_s`` seconds in all,
    and ``FrameError`` where the worker hangs up without an answer.
    """
    deadline = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        with socket_address(socket_path) as address:
            sock.connect(address)
        send_frame(sock, payload)
        left_s = max(deadline - time.monotonic(), 0.001)
        return recv_frame(sock, limit=MAX_FRAME_BYTES, timeout_s=left_s)
