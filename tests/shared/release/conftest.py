"""A signed release made by hand, and a server that serves folders as badly as a test wants."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.release.keys import encode_key
from shared.release.manifest import manifest_bytes, sha256, sign, sums_bytes, version_bytes

FILES = {
    "README.md": b"# a release\n",
    "pairs.safetensors": bytes(range(256)) * 4000,
    "provenance.json": b"{}",
}


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has its own known publishers."""
    folder = tmp_path / "config"
    monkeypatch.setenv("FEDSTILL_CONFIG", str(folder))
    return folder


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def other_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(reversed(range(32))))


@pytest.fixture
def write_pem(tmp_path: Path) -> Callable[[Ed25519PrivateKey], Path]:
    def write(key: Ed25519PrivateKey) -> Path:
        path = tmp_path / f"{sha256(key.private_bytes_raw())[:8]}.pub"
        path.write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        return path

    return write


@pytest.fixture
def contents(key: Ed25519PrivateKey) -> Callable[..., dict[str, bytes]]:
    """The files of a signed release, by name."""

    def make(
        *,
        number: int = 1,
        name: str = "ct-demo",
        files: dict[str, bytes] | None = None,
        manifest: bytes | None = None,
        signer: Ed25519PrivateKey = key,
    ) -> dict[str, bytes]:
        data = {**FILES, "number.txt": b"%d" % number} if files is None else files
        if manifest is None:
            manifest = manifest_bytes(
                name=name, contract_digest="c" * 64, license="CC-BY-4.0", files=data
            )
            sums = sums_bytes(manifest)
        else:
            sums = b""
        version = version_bytes(
            namespace="fedstill",
            name=name,
            number=number,
            manifest=manifest,
            key=signer.public_key(),
        )
        return {
            **data,
            "MANIFEST.json": manifest,
            "MANIFEST.json.sig": sign(manifest, signer),
            "VERSION.json": version,
            "VERSION.json.sig": sign(version, signer),
            "SHA256SUMS": sums,
        }

    return make


@pytest.fixture
def release(tmp_path: Path, contents: Callable[..., dict[str, bytes]]) -> Path:
    folder = tmp_path / "release"
    folder.mkdir()
    for name, content in contents().items():
        (folder / name).write_bytes(content)
    return folder


@dataclass
class Server:
    """What is served, and how badly."""

    url: str = ""
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    publisher: str | None = None
    cut_after: int | None = None
    """Close the connection after so many bytes of a body of a data file."""
    cuts_left: int = 10**9
    ignores_range: bool = False
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, Range header) of every GET."""

    def publish(self, revision: str, files: dict[str, bytes]) -> None:
        self.revisions[revision] = files
        self.revisions[sha256(files["MANIFEST.json"])[:40]] = files


@pytest.fixture
def server(key: Ed25519PrivateKey) -> Iterator[Server]:
    state = Server(publisher=encode_key(key.public_key()))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.requests.append((self.path, self.headers["Range"]))
            if self.path == "/api/publisher" and state.publisher:
                return self._send(200, b'{"key": "%s"}' % state.publisher.encode(), {})
            parts = self.path.split("/")
            files = state.revisions.get(parts[5]) if parts[4:5] == ["resolve"] else None
            if files is None or parts[6] not in files:
                return self._send(404, b'{"error": "no such file", "hint": ""}', {})
            content = files[parts[6]]
            headers = {
                "ETag": f'"{sha256(content)}"',
                "X-Repo-Commit": sha256(files["MANIFEST.json"])[:40],
            }
            wanted = self.headers["Range"]
            if wanted and not state.ignores_range:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                return self._send(206, content[start:], headers)
            return self._send(200, content, headers)

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if state.cut_after is not None and len(body) > state.cut_after and state.cuts_left:
                state.cuts_left -= 1
                self.wfile.write(body[: state.cut_after])
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)
                return
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    yield state
    httpd.shutdown()
    thread.join()
    httpd.server_close()
