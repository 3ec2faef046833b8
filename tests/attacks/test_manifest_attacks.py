"""Thirteen things a hostile server may do to a release, each refused with an exit code of its own.

The server is the real one behind a layer that changes its answers; the client is the real command.
Two controls: an honest server passes, and each attack passes where the check it meets is taken out.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator.api import create_app
from aggregator.publisher_keys import PublisherKeys
from aggregator.release import publish
from shared.contract import RunContract
from shared.release.head import moment, read_head, sign_head
from shared.release.key_list import KeyChain, KeyList, ListedKey, sign_list
from shared.release.keys import encode_key, read_private_key, write_key_pair
from shared.release.manifest import manifest_bytes, sha256, sign, sums_bytes, version_bytes
from shared.release.minisign import signature_text

NAME = "ct-demo"
FILES = {"README.md": b"# a release\n", "pairs.safetensors": bytes(range(256)) * 1000}
PAIRS = "pairs.safetensors"

Message = MutableMapping[str, Any]
Answer = tuple[int, list[tuple[bytes, bytes]], bytes]
Change = Callable[[str, Answer], Answer]


@dataclass
class Hostile:
    """The real server's application, and what is done to its answers."""

    app: Any
    change: Change = lambda _, answer: answer
    rename: Callable[[str], str] = lambda path: path

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"]
        scope = {**scope, "path": self.rename(path), "raw_path": self.rename(path).encode()}
        start: list[Message] = []
        body = bytearray()

        async def hold(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.append(message)
            else:
                body.extend(message.get("body", b""))

        await self.app(scope, receive, hold)
        headers = [tuple(one) for one in start[0]["headers"] if one[0] != b"content-length"]
        status, headers, content = self.change(path, (start[0]["status"], headers, bytes(body)))
        headers.append((b"content-length", str(len(content)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})
        return None


@dataclass
class World:
    """A publisher with two versions, the hostile server before it, and a researcher."""

    home: Path
    url: str
    hostile: Hostile
    folder: Path
    """The researcher's: empty before and after an attack."""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def keys(self) -> PublisherKeys:
        return PublisherKeys(self.home / "keys")

    def key(self, use: str = "release") -> Ed25519PrivateKey:
        return read_private_key(self.home / "keys" / f"{use}.key")

    def get(self, what: str = NAME, to: str = "here", without: str = "") -> int:
        """`distilled get`; ``without`` is Python that takes checks out of it first."""
        code = without + "\nfrom shared.release.cli import main\nmain()"
        arguments = ["get", what, "--from", self.url, "--to", str(self.folder / to)]
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            env=self.environment,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode

    @property
    def left(self) -> list[str]:
        """What lies at the destination, and of the release in the cache."""
        parts = self.folder.parent / "cache" / "fedstill" / "downloads"
        found = [*self.folder.iterdir(), *(parts.iterdir() if parts.exists() else ())]
        return [path.name for path in found]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two versions."""
    home = tmp_path_factory.mktemp("publisher")
    (home / "keys").mkdir()
    write_key_pair(home / "keys" / "release.key", home / "keys" / "release.pub")
    key = PublisherKeys(home / "keys").signer()
    for extra in ({}, {"second.txt": b"second"}):
        publish(home=home, contract=RunContract(name=NAME), files={**FILES, **extra}, key=key)
    return home


@pytest.fixture
def world(published: Path, tmp_path: Path) -> Iterator[World]:
    home = tmp_path / "home"
    shutil.copytree(published, home)
    hostile = Hostile(create_app(home))
    config = uvicorn.Config(hostile, log_level="warning", ws="none", lifespan="on")
    server = uvicorn.Server(config)
    (tmp_path / "researcher").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield World(
            home=home,
            url=f"http://127.0.0.1:{listener.getsockname()[1]}",
            hostile=hostile,
            folder=tmp_path / "researcher",
            environment={
                **os.environ,
                "FEDSTILL_CONFIG": str(tmp_path / "config"),
                "XDG_CACHE_HOME": str(tmp_path / "cache"),
            },
        )
        server.should_exit = True
        thread.join()


def at(name: str, do: Callable[[Answer], Answer]) -> Change:
    """A change of the answers to one file or route."""
    return lambda path, answer: do(answer) if path.endswith(f"/{name}") else answer


def gone(_: Answer) -> Answer:
    return 404, [], b'{"error": "no such file", "hint": ""}'


def serving(contents: dict[str, bytes]) -> Change:
    """Other files in place of the genuine ones, and a head that fits nothing but is not theirs."""
    return lambda path, answer: (
        (200, answer[1], contents[path.rsplit("/", 1)[1]])
        if "/resolve/" in path and path.rsplit("/", 1)[1] in contents
        else answer
    )


def signed(key: Ed25519PrivateKey, *, number: int = 2, manifest: bytes) -> dict[str, bytes]:
    """The documents of a release that ``key`` signs."""
    version = version_bytes(
        namespace="fedstill", name=NAME, number=number, manifest=manifest, key=key.public_key()
    )
    return {
        "MANIFEST.json": manifest,
        "MANIFEST.json.sig": sign(manifest, key),
        "MANIFEST.json.minisig": signature_text(manifest, key, comment="forged"),
        "VERSION.json": version,
        "VERSION.json.sig": sign(version, key),
    }


def genuine_manifest(world: World, digest_of: int = 2) -> bytes:
    """MANIFEST.json of a version, from the publisher's storage."""
    extra = {} if digest_of == 1 else {"second.txt": b"second"}
    return manifest_bytes(
        name=NAME,
        contract_digest=RunContract(name=NAME).digest(),
        license="CC-BY-4.0",
        files={**FILES, **extra},
    )


def byte_flip(world: World) -> None:
    def flip(answer: Answer) -> Answer:
        content = bytearray(answer[2])
        content[len(content) // 2] ^= 1
        return answer[0], answer[1], bytes(content)

    world.hostile.change = at(PAIRS, flip)


def missing_file(world: World) -> None:
    world.hostile.change = at("README.md", gone)


def extra_file(world: World) -> None:
    def add(path: str, answer: Answer) -> Answer:
        if "/tree/" not in path:
            return answer
        listed = [*json.loads(answer[2]), {"type": "file", "path": "setup.py", "size": 1}]
        return answer[0], answer[1], json.dumps(listed).encode()

    world.hostile.change = add


def swapped_versions(world: World) -> None:
    """The newest is asked for; the head is the newest's, the files are those of the first."""
    digest = sha256(genuine_manifest(world))[:40]
    first = sha256(genuine_manifest(world, 1))[:40]
    world.hostile.rename = lambda path: path.replace("/v2/", "/v1/").replace(digest, first)


def rollback(world: World) -> None:
    """What the server said when the first version was the newest, once the second was seen."""
    assert world.get(NAME, to="second") == 0
    shutil.rmtree(world.folder / "second")
    _show_head(world, number=1, sequence=1, digest=sha256(genuine_manifest(world, 1)))


def freeze(world: World) -> None:
    """The same, to one who has seen nothing yet, after the head has expired."""
    _show_head(
        world,
        number=1,
        sequence=1,
        digest=sha256(genuine_manifest(world, 1)),
        age=timedelta(days=14, hours=1),
    )


def _show_head(
    world: World, *, number: int, sequence: int, digest: str, age: timedelta = timedelta()
) -> None:
    def old(answer: Answer) -> Answer:
        issued = datetime.now(UTC) - age
        now = read_head(
            answer[2],
            namespace="fedstill",
            name=NAME,
            key=world.key("head").public_key(),
            now=datetime.now(UTC),
        )
        head = now.model_copy(
            update={
                "number": number,
                "sequence": sequence,
                "manifest_sha256": digest,
                "issued_at": moment(issued),
                "expires_at": moment(issued + timedelta(days=14)),
            }
        )
        return 200, answer[1], sign_head(head, world.key("head")).model_dump_json().encode()

    world.hostile.change = at("head", old)


def unknown_key(world: World) -> None:
    own = Ed25519PrivateKey.generate()
    world.hostile.change = serving(signed(own, manifest=genuine_manifest(world)))


def revoked_key(world: World) -> None:
    """A thief of the release key goes on signing after it was revoked."""
    listed = world.keys.newest()
    fingerprint = sha256(listed.release.public_bytes_raw())
    world.keys.revoke(fingerprint, reason="stolen", honoured=lambda _: ())


def broken_rotation(world: World) -> None:
    """The server adds a list that names its own key, which the publisher has not signed."""
    own = Ed25519PrivateKey.generate()
    chain = world.keys.chain()
    before = chain.lists[-1].listed
    forged = KeyList(
        sequence=before.sequence + 1,
        previous=before.digest(),
        keys=(
            ListedKey(key=encode_key(own.public_key()), use="release", since="2026-01-01"),
            *(
                one.model_copy(update={"use": "retired"}) if one.use == "release" else one
                for one in before.keys
            ),
        ),
    )
    content = KeyChain(lists=(*chain.lists, sign_list(forged, [own]))).model_dump_json().encode()
    world.hostile.change = lambda path, answer: (
        (200, answer[1], content)
        if path == "/api/publisher/keys"
        else serving(signed(own, manifest=genuine_manifest(world)))(path, answer)
    )


def unsigned(world: World) -> None:
    world.hostile.change = at("MANIFEST.json.sig", gone)


def truncated(world: World) -> None:
    def cut(answer: Answer) -> Answer:
        return (200, answer[1], answer[2][:100_000]) if answer[0] == 200 else (416, [], b"{}")

    world.hostile.change = at(PAIRS, cut)


def path_traversal(world: World) -> None:
    """Signed by the publisher's own key: what a stolen key could do."""
    manifest = genuine_manifest(world).replace(b'"second.txt"', b'"../../second.txt"')
    world.hostile.change = serving(signed(world.key(), manifest=manifest))


def oversized(world: World) -> None:
    world.hostile.change = at("README.md", lambda answer: (200, answer[1], answer[2] * 100_000))


ATTACKS: dict[Callable[[World], None], int] = {
    byte_flip: 10,
    missing_file: 13,
    extra_file: 14,
    path_traversal: 15,
    unknown_key: 16,
    swapped_versions: 17,
    rollback: 18,
    revoked_key: 19,
    truncated: 21,
    broken_rotation: 23,
    freeze: 24,
    unsigned: 25,
    oversized: 26,
}


def test_each_attack_has_a_code_of_its_own() -> None:
    assert len(ATTACKS) == 13
    assert len(set(ATTACKS.values())) == 13


def test_an_honest_server_passes(world: World) -> None:
    assert world.get() == 0
    assert (world.folder / "here" / PAIRS).read_bytes() == FILES[PAIRS]
    assert world.left == ["here"]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attack_is_refused_and_leaves_nothing(
    world: World, attack: Callable[[World], None]
) -> None:
    attack(world)
    assert world.get() == ATTACKS[attack]
    if attack is truncated:  # for all one can tell a broken connection: kept for the next attempt
        (digest,) = world.left
        part = world.folder.parent / "cache" / "fedstill" / "downloads" / digest / PAIRS
        assert FILES[PAIRS].startswith(part.read_bytes())
        assert not list(world.folder.iterdir())
    else:
        assert world.left == []
    if attack in (truncated, rollback, freeze, broken_rotation):
        world.hostile.change = lambda _, answer: answer
        assert world.get() == 0  # nothing that was seen meanwhile stays in the way


WITHOUT = {
    byte_flip: """
from shared.release import delivery, downloads
downloads.verify_file = delivery.verify_folder = lambda *_, **__: None
""",
    extra_file: """
from shared.release import client
client._listed = lambda *_, **__: set()
""",
    unknown_key: """
from shared.release import client, delivery, manifest
from shared.release.keys import decode_key
honest = client.verify_documents
class All:
    pass
def any_key(**given):
    record = manifest.VersionRecord.model_validate_json(given["version"])
    manifest.key_id = lambda key: record.key
    manifest.is_signature = lambda *_: True
    return honest(**given)
client.verify_documents = any_key
delivery.verify_folder = lambda *_, **__: None
""",
    swapped_versions: """
from shared.release import client
client._check_asked_for = lambda *_, **__: None
""",
    rollback: """
from shared.release import client
client.check_head = client.check_history = lambda *_, **__: None
""",
    revoked_key: """
from shared.release import manifest
from shared.release.keys import decode_key
manifest._honoured = lambda record, version, revoked: decode_key(revoked[0].key)
""",
    broken_rotation: """
from shared.release import key_list
key_list._fault = lambda *_: ""
""",
    freeze: """
from datetime import UTC, datetime, timedelta
from shared.release import client
class Stopped(datetime):
    @classmethod
    def now(cls, zone=None):
        return datetime.now(UTC) - timedelta(days=3)
client.datetime = Stopped
""",
}
"""Python that takes out the one check that an attack meets."""


@pytest.mark.parametrize("attack", WITHOUT, ids=lambda attack: attack.__name__)
def test_attack_passes_where_its_check_is_taken_out(
    world: World, attack: Callable[[World], None]
) -> None:
    attack(world)
    assert world.get(without=WITHOUT[attack]) == 0
    assert (world.folder / "here" / PAIRS).exists()


def test_a_chain_that_was_seen_cannot_be_taken_back(world: World) -> None:
    old = world.keys.chain().model_dump_json().encode()
    world.keys.rotate("release")
    assert world.get() == 0
    shutil.rmtree(world.folder / "here")
    world.hostile.change = at("keys", lambda answer: (200, answer[1], old))
    assert world.get() == 23
    assert world.left == []


def test_what_was_signed_before_a_rotation_stays_genuine(world: World) -> None:
    assert world.get(to="before") == 0
    world.keys.rotate("release")
    world.keys.rotate("head")
    assert world.get(to="after") == 0
    fingerprint = sha256(world.keys.newest().named("retired")[0].public_bytes_raw())
    version = (world.folder / "after" / "VERSION.json").read_bytes()
    world.keys.revoke(fingerprint, reason="old laptop", honoured=lambda _: [sha256(version)])
    assert world.get(to="vouched-for") == 0
    assert world.get(f"{NAME}@1", to="not-vouched-for") == 19


def test_a_manifest_without_end_is_not_read_to_its_end(world: World) -> None:
    world.hostile.change = at("MANIFEST.json", lambda answer: (200, answer[1], b" " * 3_000_000))
    assert world.get() == 26
    assert world.left == []


def test_sums_that_say_otherwise(world: World) -> None:
    lies = sums_bytes(genuine_manifest(world, 1))
    world.hostile.change = at("SHA256SUMS", lambda answer: (200, answer[1], lies))
    assert world.get() == 10
    assert world.left == []


def test_another_signature_for_minisign(world: World) -> None:
    junk = b"untrusted comment: \x1b[2J\nAAAA\n"
    world.hostile.change = at("MANIFEST.json.minisig", lambda answer: (200, answer[1], junk))
    assert world.get() == 12
    assert world.left == []
