"""Behind a proxy and a private CA, as the environment names them."""

import datetime
import ipaddress
import os
import select
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Contents = Callable[..., dict[str, bytes]]


@dataclass
class Proxy:
    """A CONNECT proxy on loopback."""

    url: str = ""
    asked: list[str] = field(default_factory=list)
    """Every ``host:port`` it was asked to connect to."""
    destination: tuple[str, int] = ("", 0)
    """Where it really connects to, whatever was asked."""


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    state = Proxy()

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += self.request.recv(1)
            state.asked.append(head.split()[1].decode())
            with socket.create_connection(state.destination) as onward:
                self.request.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                ends = {self.request: onward, onward: self.request}
                while True:
                    for end in select.select(list(ends), [], [])[0]:
                        content = end.recv(65536)
                        if not content:
                            return
                        ends[end].sendall(content)

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield state
        server.shutdown()
        thread.join()


def certify(folder: Path, name: str) -> tuple[Path, Path]:
    """A CA file, and a file with the key and the certificate it gave to ``name`` and loopback."""
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.UTC)

    def build(subject: str, issuer: str, key: Any) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
        )

    authority, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca = (
        build("hospital CA", "hospital CA", authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority, hashes.SHA256())
    )
    names = [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        build(name, "hospital CA", own)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(ca.public_bytes(pem))
    (folder / "server.pem").write_bytes(
        own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(pem)
    )
    return folder / "ca.pem", folder / "server.pem"


@dataclass
class Secure:
    """The server behind TLS."""

    port: int
    ca: Path


@pytest.fixture
def secure(server: Any, tmp_path: Path) -> Iterator[Secure]:
    """TLS in front of the server: a loop that takes it off."""
    ca, own = certify(tmp_path, "aggregator.hospital.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own)
    httpd: ThreadingHTTPServer = server.httpd
    with ThreadingHTTPServer(("127.0.0.1", 0), httpd.RequestHandlerClass) as wrapped:
        wrapped.daemon_threads = True
        wrapped.socket = context.wrap_socket(
            wrapped.socket, server_side=True, do_handshake_on_connect=False
        )
        thread = threading.Thread(target=wrapped.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield Secure(port=wrapped.server_port, ca=ca)
        wrapped.shutdown()
        thread.join()


def get(url: str, to: Path, **environment: str) -> tuple[int, str]:
    """The real command in an environment without proxies but those given."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.startswith("SSL_")
    }
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from shared.release.cli import main; main()",
            *("get", "ct-demo@v1", "--from", url, "--to", str(to)),
        ],
        capture_output=True,
        text=True,
        env={**inherited, **environment},
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_through_a_proxy_to_a_private_ca(
    server: Any, secure: Secure, proxy: Proxy, contents: Contents, tmp_path: Path
) -> None:
    server.publish("v1", contents())
    proxy.destination = ("127.0.0.1", secure.port)
    url = "https://aggregator.hospital.example"  # a name that the proxy alone resolves
    code, said = get(url, tmp_path / "x", HTTPS_PROXY=proxy.url, SSL_CERT_FILE=str(secure.ca))
    assert code == 0, said
    assert set(proxy.asked) == {"aggregator.hospital.example:443"}
    # The CA is not trusted without being named, proxy or not.
    code, said = get(url, tmp_path / "y", HTTPS_PROXY=proxy.url)
    assert code == 20
    assert "certificate" in said.lower()


def test_no_proxy_and_none_that_is_there(
    server: Any, secure: Secure, proxy: Proxy, contents: Contents, tmp_path: Path
) -> None:
    server.publish("v1", contents())
    url = f"https://127.0.0.1:{secure.port}"
    given = {"https_proxy": "http://127.0.0.1:1", "SSL_CERT_FILE": str(secure.ca)}
    assert get(url, tmp_path / "x", NO_PROXY="127.0.0.1", **given)[0] == 0
    assert get(url, tmp_path / "y", **given)[0] == 20
    assert proxy.asked == []


def test_an_environment_that_is_wrong_is_named(server: Any, tmp_path: Path) -> None:
    for name, value in (("SSL_CERT_FILE", "/nowhere.pem"), ("HTTPS_PROXY", "gopher://x")):
        code, said = get("https://aggregator.hospital.example", tmp_path / "x", **{name: value})
        assert code == 3, said
        assert name in said
