import socket
import struct
import threading
import time

import pytest

from site_agent.frames import FrameError, call, recv_frame, send_frame, socket_address


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    with left, right:
        yield left, right


@pytest.mark.parametrize("payload", [b"", b"x", bytes(3_000_000)])
def test_a_frame_arrives_as_it_was_sent(pair, payload):
    sender = threading.Thread(target=send_frame, args=(pair[0], payload))
    sender.start()
    assert recv_frame(pair[1], limit=3_000_000) == payload
    sender.join()


def test_a_frame_above_the_limit_is_refused_unread(pair):
    pair[0].sendall(struct.pack(">Q", 2**63))
    with pytest.raises(FrameError, match="exceeds 100"):
        recv_frame(pair[1], limit=100)


def test_a_peer_that_hangs_up_inside_a_frame(pair):
    pair[0].sendall(struct.pack(">Q", 10) + b"abc")
    pair[0].close()
    with pytest.raises(FrameError, match="closed"):
        recv_frame(pair[1], limit=100)


def test_a_slow_peer_cannot_stretch_the_time_limit(pair):
    pair[0].sendall(struct.pack(">Q", 1000))
    dripping = threading.Event()

    def drip():
        while not dripping.wait(0.05):
            pair[0].sendall(b".")

    thread = threading.Thread(target=drip)
    thread.start()
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        recv_frame(pair[1], limit=2000, timeout_s=0.3)
    assert time.monotonic() - started < 2
    dripping.set()
    thread.join()


def answer_once(path):
    server = socket.socket(socket.AF_UNIX)
    with socket_address(path) as address:
        server.bind(address)
    server.listen()

    def serve():
        with server, server.accept()[0] as connection:
            send_frame(connection, recv_frame(connection, limit=100)[::-1])

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_call_brings_the_answer(tmp_path):
    thread = answer_once(tmp_path / "s")
    assert call(tmp_path / "s", b"abc", timeout_s=5) == b"cba"
    thread.join()


def test_a_path_longer_than_the_kernel_allows(tmp_path):
    deep = tmp_path / ("d" * 100) / "e"
    deep.mkdir(parents=True)
    thread = answer_once(deep / "worker.sock")
    assert (deep / "worker.sock").is_socket()
    assert call(deep / "worker.sock", b"abc", timeout_s=5) == b"cba"
    thread.join()


def test_nobody_there_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        call(tmp_path / "s", b"abc", timeout_s=1)
