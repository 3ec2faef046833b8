import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aggregator.catalog import Catalog
from aggregator.publisher_keys import PublisherKeys
from shared.release.errors import TamperedSignatureError
from shared.release.head import Head, read_head
from shared.release.key_list import follow, read_chain
from shared.release.keys import read_public_key
from shared.release.minisign import public_key_text


def head(client: Any, home: Path) -> Head:
    """The head as a client reads it, from the key list on."""
    lists = read_chain(client.get("/api/publisher/keys").content)
    key = read_public_key(home / "keys" / "release.pub")
    newest = follow(lists, key=key, seen=None)
    answer = client.get("/api/datasets/fedstill/ct-demo/head")
    assert answer.status_code == 200
    return read_head(
        answer.content,
        namespace="fedstill",
        name="ct-demo",
        key=newest.head,
        now=datetime.now(UTC),
    )


def test_the_head_follows_the_catalog(client: Any, home: Path) -> None:
    first = head(client, home)
    newest = client.get("/api/datasets/fedstill/ct-demo").json()
    assert (first.number, first.manifest_sha256) == (2, newest["digest"])
    assert first.withdrawn == ()
    lasts = datetime.fromisoformat(first.expires_at) - datetime.fromisoformat(first.issued_at)
    assert lasts == timedelta(days=14)
    assert head(client, home) == first  # one a minute
    catalog = Catalog(home / "catalog.sqlite")
    catalog.withdraw("fedstill", "ct-demo", 2, "a reason")
    then = head(client, home)
    assert (then.number, then.withdrawn) == (1, (2,))
    assert then.sequence > first.sequence
    catalog.withdraw("fedstill", "ct-demo", 1, "a reason")
    assert head(client, home).number == 0
    assert head(client, home).manifest_sha256 is None
    catalog.close()


def test_a_new_head_key_signs_at_once(client: Any, home: Path) -> None:
    before = client.get("/api/datasets/fedstill/ct-demo/head").content
    keys = PublisherKeys(home / "keys")
    keys.rotate("head")
    head(client, home)
    with pytest.raises(TamperedSignatureError):
        read_head(
            before,
            namespace="fedstill",
            name="ct-demo",
            key=keys.newest().head,
            now=datetime.now(UTC),
        )


def test_the_chain_is_served_whole(client: Any, home: Path) -> None:
    PublisherKeys(home / "keys").rotate("release")
    lists = read_chain(client.get("/api/publisher/keys").content)
    assert [one.sequence for one in lists] == [1, 2]
    assert client.get("/api/publisher/keys?x=1").status_code == 422


def test_no_dataset_no_head(client: Any) -> None:
    answer = client.get("/api/datasets/fedstill/none/head")
    assert answer.status_code == 404
    assert answer.headers["X-Error-Code"] == "RepoNotFound"


def test_without_keys_the_server_says_so(client: Any, home: Path) -> None:
    for file in (home / "keys").iterdir():
        file.unlink()
    for path in ("publisher", "publisher/keys", "datasets/fedstill/ct-demo/head"):
        answer = client.get(f"/api/{path}")
        assert answer.status_code == 503
        assert "aggregator init" in json.loads(answer.content)["hint"]


def test_the_key_as_minisign_reads_it(client: Any, home: Path) -> None:
    answer = client.get("/api/publisher/minisign.pub")
    key = read_public_key(home / "keys" / "release.pub")
    assert (answer.status_code, answer.content) == (200, public_key_text(key))
    assert base64.b64decode(answer.text.splitlines()[1])[10:] == key.public_bytes_raw()
