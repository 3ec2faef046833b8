"""A signed release made by hand, and a server that serves folders as badly as a test wants."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.release.head import Head, moment, sign_head
from shared.release.key_list import (
    KeyChain,
    KeyList,
    ListedKey,
    RevokedKey,
    SignedKeyList,
    sign_list,
)
from shared.release.keys import encode_key
from shared.release.manifest import manifest_bytes, sha256, sign, sums_bytes, version_bytes

FILES = {
    "README.md": b"# a release\n",
    "pairs.safetensors": bytes(range(256)) * 4000,
    "provenance.json": b"{}",
}


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has its own known publishers and cache."""
    folder = tmp_path / "config"
    monkeypatch.setenv("FEDSTILL_CONFIG", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FEDSTILL_TOKEN", raising=False)
    return folder


def entry(key: Ed25519PrivateKey, use: Literal["release", "retired", "head"]) -> ListedKey:
    return ListedKey(key=encode_key(key.public_key()), use=use, since="2026-01-01")


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def other_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(reversed(range(32))))


@pytest.fixture
def head_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)


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

    release_key: Ed25519PrivateKey
    head_key: Ed25519PrivateKey
    url: str = ""
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    lists: list[SignedKeyList] = field(default_factory=list)
    chain: bytes | None = None
    """What is served in place of ``lists``."""
    newest: tuple[int, str, str] = (0, "", "")
    """Number, digest and dataset that heads name."""
    head: bytes | None = None
    """What is served in place of a fresh head."""
    cut_after: int | None = None
    """Close the connection after so many bytes of a body of a data file."""
    cuts_left: int = 10**9
    stall_after: int | None = None
    """Send nothing more after so many bytes of a body."""
    answers: dict[str, list[tuple[int, dict[str, str], bytes]]] = field(default_factory=dict)
    """By path: the next answers, each once, before the honest one."""
    extra: tuple[str, ...] = ()
    """Names that the list of files has beside those served."""
    ignores_range: bool = False
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, Range header) of every GET."""
    posts: list[tuple[str, bytes]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    """Every ``Authorization`` header."""
    closing: threading.Event = field(default_factory=threading.Event)
    httpd: Any = None

    def publish(self, revision: str, files: dict[str, bytes]) -> None:
        digest = sha256(files["MANIFEST.json"])
        record = json.loads(files["VERSION.json"])
        for name in {revision, f"v{record['number']}" if revision == "main" else revision}:
            self.revisions[name] = files
        self.revisions[digest[:40]] = files
        if revision == "main" or record["number"] >= self.newest[0]:
            self.newest = (record["number"], digest, record["name"])

    def signed_head(
        self, *, name: str = "ct-demo", age: timedelta = timedelta(), **changes: Any
    ) -> bytes:
        issued = datetime.now(UTC) - age
        number, digest, _ = self.newest
        values: dict[str, Any] = {
            "namespace": "fedstill",
            "name": name,
            "sequence": number,
            "number": number,
            "manifest_sha256": digest,
            "issued_at": moment(issued),
            "expires_at": moment(issued + timedelta(days=14)),
            **changes,
        }
        return sign_head(Head(**values), self.head_key).model_dump_json().encode()

    def rotate(
        self,
        fresh: Ed25519PrivateKey,
        *,
        signers: list[Ed25519PrivateKey],
        revoked: tuple[RevokedKey, ...] = (),
        retired: tuple[Ed25519PrivateKey, ...] = (),
    ) -> None:
        """Appends a list in which ``fresh`` is the release key."""
        before = self.lists[-1].listed
        listed = KeyList(
            sequence=before.sequence + 1,
            previous=before.digest(),
            keys=(
                entry(fresh, "release"),
                entry(self.head_key, "head"),
                *(entry(key, "retired") for key in retired),
            ),
            revoked=revoked,
        )
        self.lists.append(sign_list(listed, signers))
        self.release_key = fresh


@pytest.fixture
def server(key: Ed25519PrivateKey, head_key: Ed25519PrivateKey) -> Iterator[Server]:
    yield from serve(key, head_key)


def serve(key: Ed25519PrivateKey, head_key: Ed25519PrivateKey) -> Iterator[Server]:
    state = Server(release_key=key, head_key=head_key)
    first = KeyList(
        sequence=1, previous=None, keys=(entry(key, "release"), entry(head_key, "head"))
    )
    state.lists.append(sign_list(first, [key]))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.requests.append((self.path, self.headers["Range"]))
            state.tokens.add(self.headers["Authorization"])
            parts = self.path.split("/")
            planned = state.answers.get(self.path) or state.answers.get(parts[-1])
            if planned:
                status, headers, body = planned.pop(0)
                return self._send(status, body, headers)
            if self.path == "/api/publisher/keys":
                chain = state.chain or KeyChain(lists=tuple(state.lists)).model_dump_json().encode()
                return self._send(200, chain, {})
            if parts[1:2] == ["api"] and parts[5:] == ["head"]:
                head = state.head or state.signed_head(name=parts[4])
                return self._send(200, head, {})
            if parts[1:2] == ["api"] and parts[5:6] == ["tree"]:
                listed = [*state.revisions.get(parts[6], {}), *state.extra]
                body = json.dumps([{"type": "file", "path": name} for name in listed])
                return self._send(200, body.encode(), {})
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

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.posts.append((self.path, body))
            state.tokens.add(self.headers["Authorization"])
            planned = state.answers.get("POST")
            status, headers, answer = planned.pop(0) if planned else (200, {}, b"{}")
            self._send(status, answer, headers)

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if state.stall_after is not None and len(body) > state.stall_after:
                self.wfile.write(body[: state.stall_after])
                self.wfile.flush()
                state.closing.wait(60)
                self.close_connection = True
                return
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

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # a client that was killed
                super().handle()

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    state.httpd = httpd
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    yield state
    state.closing.set()
    httpd.shutdown()
    thread.join()
    httpd.server_close()
