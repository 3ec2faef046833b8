"""A real TLS server whose first connections break, or whose certificate is not the right one."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import flwr.supernode.runtime.run_clientapp as runtime
import httpx
import pytest
from flwr.proto.control_pb2 import ListNodesRequest
from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest, SendTaskHeartbeatResponse
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient

from aggregator.home import create_home
from shared.flower import ControlClient, RuntimeClient, replace

ANSWER = SendTaskHeartbeatResponse(success=True).SerializeToString()
HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(ANSWER)


@contextmanager
def server(tls: Path, *, breaks: int) -> Iterator[tuple[int, list[str]]]:
    """Closes so many connections in the middle of the handshake; answers the others."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / "server.crt", tls / "server.key")
    seen: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    if len(seen) < breaks:
                        connection.recv(65536)  # the client's greeting is all it hears
                        seen.append("broken")
                        continue
                    try:
                        with context.wrap_socket(connection, server_side=True) as secure:
                            secure.recv(65536)
                            seen.append("answered")
                            secure.sendall(HEAD + ANSWER)
                    except ssl.SSLError:
                        seen.append("refused")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1], seen
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def beat(client: type[RuntimeHttpClient], port: int, authority: Path) -> bool:
    made = client.from_server_address(
        server_address=f"127.0.0.1:{port}",
        insecure=False,
        root_certificates=authority.read_bytes(),
        interceptors=[],
        retry_invoker=make_simple_http_retry_invoker(),
    )
    try:
        return bool(made.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success)
    finally:
        made.close()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_home(tmp_path_factory.mktemp("flower") / "home", {}).tls


def test_a_handshake_that_broke_is_tried_again(tls: Path) -> None:
    with server(tls, breaks=2) as (port, seen):
        assert beat(RuntimeClient, port, tls / "ca.crt")
    assert seen == ["broken", "broken", "answered"]


def test_what_has_no_patience_of_its_own_is_told_in_time(tls: Path) -> None:
    with server(tls, breaks=99) as (port, seen):
        made = ControlClient.from_server_address(
            server_address=f"127.0.0.1:{port}",
            insecure=False,
            root_certificates=(tls / "ca.crt").read_bytes(),
            interceptors=[],
        )
        with pytest.raises(httpx.ConnectError, match="broke while it was made"):
            made.ListNodes(ListNodesRequest())
        made.close()
    assert seen == ["broken"] * 3


def test_flowers_own_client_gives_up(tls: Path) -> None:
    """The control: without ours, a ServerApp ends here before it began."""
    with server(tls, breaks=2) as (port, seen), pytest.raises(httpx.ConnectError, match="SSL"):
        beat(RuntimeHttpClient, port, tls / "ca.crt")
    assert seen == ["broken"]


def test_a_certificate_that_is_not_vouched_for_is_refused_at_once(
    tls: Path, tmp_path: Path
) -> None:
    other = create_home(tmp_path / "other", {}).tls / "ca.crt"
    with (
        server(tls, breaks=0) as (port, seen),
        pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        beat(RuntimeClient, port, other)
    assert "answered" not in seen
    assert len(seen) <= 1, "asked once"


def test_another_flower_is_noticed() -> None:
    with pytest.raises(RuntimeError, match=r"flwr==1\.41\.0"):
        replace(runtime, "no_such_name", None)
