import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.release.errors import LocalError, RollbackError, SwappedVersionError
from shared.release.keys import key_id
from shared.release.manifest import VersionRecord
from shared.release.publishers import (
    check_history,
    known_publishers_file,
    origin,
    pinned_key,
    pinned_keys,
    remember,
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


def test_keys_are_pinned_by_server(key: Ed25519PrivateKey, other_key: Ed25519PrivateKey) -> None:
    assert pinned_key(URL) is None
    remember(URL, key.public_key(), record(1, "a"))
    remember("http://other", other_key.public_key(), record(1, "b"))
    pinned = pinned_key(URL + "/path")
    assert pinned is not None
    assert key_id(pinned) == key_id(key.public_key())
    assert len(pinned_keys()) == 2
    assert stat.S_IMODE(known_publishers_file().stat().st_mode) & 0o022 == 0


def test_history_is_by_dataset_and_by_key(
    key: Ed25519PrivateKey, other_key: Ed25519PrivateKey
) -> None:
    mine, other = key.public_key(), other_key.public_key()
    remember(URL, mine, record(1, "a"))
    remember(URL, mine, record(2, "b"))
    check_history(URL, mine, record(3, "c"), newest=True)
    check_history(URL, mine, record(1, "a"), newest=False)
    check_history(URL, mine, record(1, "f", name="mr-demo"), newest=True)
    check_history(URL, other, record(1, "f"), newest=True)
    with pytest.raises(RollbackError, match="version 2 was seen"):
        check_history(URL, mine, record(1, "a"), newest=True)
    with pytest.raises(SwappedVersionError, match="never changes"):
        check_history(URL, mine, record(2, "f"), newest=False)


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"publishers": {"x": {"key": "!"}}}', json.dumps({"publishers": {}, "extra": 1})],
)
def test_a_damaged_file_is_not_taken_for_an_empty_one(config: Path, content: str) -> None:
    config.mkdir()
    (config / "known-publishers.json").write_text(content)
    with pytest.raises(LocalError, match="damaged"):
        pinned_key(URL)
