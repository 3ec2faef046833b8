import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.release.errors import LocalError, RollbackError, SwappedVersionError
from shared.release.head import Head
from shared.release.key_list import KeyList, ListedKey, RevokedKey
from shared.release.keys import encode_key, key_id
from shared.release.manifest import VersionRecord
from shared.release.publishers import (
    check_head,
    check_history,
    known_publisher,
    known_publishers_file,
    origin,
    pinned_keys,
    remember,
    revoked_keys,
)

URL = "http://localhost:8000"


def record(number: int, digest: str, name: str = "ct-demo") -> VersionRecord:
    return VersionRecord(
        namespace="fedstill", name=name, number=number, manifest_sha256=digest * 64, key="0" * 64
    )


def test_origins() -> None:
    assert origin("https://Example.org/some/where") == "https://example.org:443"
    assert origin("http://127.0.0.1:8080/") == "http://127.0.0.1:8080"
    assert origin("http://[::1]/") == "http://[::1]:80"
    for url in ("ftp://host", "localhost:8000", "", "http://"):
        with pytest.raises(ValueError, match="URL"):
            origin(url)


def a_list(
    key: Ed25519PrivateKey, head: Ed25519PrivateKey, *, revoked: tuple[RevokedKey, ...] = ()
) -> KeyList:
    keys = [
        ListedKey(key=encode_key(one.public_key()), use=use, since="2026-01-01")
        for one, use in ((key, "release"), (head, "head"))
    ]
    return KeyList(sequence=1, previous=None, keys=tuple(keys), revoked=revoked)


def a_head(sequence: int, name: str = "ct-demo") -> Head:
    return Head(
        namespace="fedstill",
        name=name,
        sequence=sequence,
        number=1,
        manifest_sha256="a" * 64,
        issued_at="2026-01-01T00:00:00Z",
        expires_at="2026-01-15T00:00:00Z",
    )


def test_key_lists_are_pinned_by_server(
    key: Ed25519PrivateKey, other_key: Ed25519PrivateKey, head_key: Ed25519PrivateKey
) -> None:
    assert known_publisher(URL) is None
    gone = RevokedKey(key=encode_key(other_key.public_key()), reason="stolen")
    mine, other = a_list(key, head_key, revoked=(gone,)), a_list(other_key, head_key)
    remember(URL, before=None, key_list=mine, head=a_head(1), version=record(1, "a"))
    remember("http://other", before=None, key_list=other, head=a_head(1), version=record(1, "b"))
    pinned = known_publisher(URL + "/path")
    assert pinned is not None
    assert pinned.key_list == mine
    assert pinned.key == encode_key(key.public_key())
    assert len(pinned_keys()) == 2
    assert revoked_keys() == [gone]
    assert stat.S_IMODE(known_publishers_file().stat().st_mode) & 0o022 == 0


def test_history_is_by_dataset(key: Ed25519PrivateKey, head_key: Ed25519PrivateKey) -> None:
    mine = a_list(key, head_key)
    for number, digest in ((1, "a"), (2, "b")):
        remember(
            URL,
            before=known_publisher(URL),
            key_list=mine,
            head=a_head(number),
            version=record(number, digest),
        )
    known = known_publisher(URL)
    check_history(known, record(3, "c"), newest=True, withdrawn=set())
    check_history(known, record(1, "a"), newest=False, withdrawn=set())
    check_history(known, record(1, "f", name="mr-demo"), newest=True, withdrawn=set())
    check_history(None, record(1, "f"), newest=True, withdrawn=set())
    check_history(known, record(1, "a"), newest=True, withdrawn={2})
    with pytest.raises(RollbackError, match="version 2 was seen"):
        check_history(known, record(1, "a"), newest=True, withdrawn=set())
    with pytest.raises(SwappedVersionError, match="never changes"):
        check_history(known, record(2, "f"), newest=False, withdrawn=set())


def test_a_head_never_goes_back(key: Ed25519PrivateKey, head_key: Ed25519PrivateKey) -> None:
    mine = a_list(key, head_key)
    remember(URL, before=None, key_list=mine, head=a_head(5), version=record(1, "a"))
    known = known_publisher(URL)
    remember(URL, before=known, key_list=mine, head=a_head(3, "mr"), version=record(1, "a", "mr"))
    known = known_publisher(URL)
    check_head(known, a_head(5))
    check_head(known, a_head(6))
    check_head(known, a_head(3, "mr"))
    check_head(None, a_head(1))
    with pytest.raises(RollbackError, match="state 5 was seen"):
        check_head(known, a_head(4))


def test_what_another_process_saw_meanwhile_is_kept(
    key: Ed25519PrivateKey, head_key: Ed25519PrivateKey
) -> None:
    mine = a_list(key, head_key)
    remember(URL, before=None, key_list=mine, head=a_head(1), version=record(1, "a"))
    before = known_publisher(URL)
    for number in (3, 2):  # the one that began with the third ended first
        remember(
            URL, before=before, key_list=mine, head=a_head(number), version=record(number, "b")
        )
    known = known_publisher(URL)
    assert known is not None
    assert set(known.seen["fedstill/ct-demo"]) == {1, 2, 3}
    assert known.heads == {"fedstill/ct-demo": 3}


def test_a_file_of_one_key_is_read(config: Path, key: Ed25519PrivateKey) -> None:
    config.mkdir()
    publisher = {"key": encode_key(key.public_key()), "seen": {"fedstill/ct-demo": {"1": "a" * 64}}}
    text = json.dumps({"publishers": {"http://localhost:8000": publisher}})
    (config / "known-publishers.json").write_text(text)
    known = known_publisher(URL)
    assert known is not None
    assert known.key_list is None
    assert [key_id(one) for one in pinned_keys()] == [key_id(key.public_key())]


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"publishers": {"x": {"key": "!"}}}', json.dumps({"publishers": {}, "extra": 1})],
)
def test_a_damaged_file_is_not_taken_for_an_empty_one(config: Path, content: str) -> None:
    config.mkdir()
    (config / "known-publishers.json").write_text(content)
    with pytest.raises(LocalError, match="damaged"):
        known_publisher(URL)
