"""A home with a public, a gated and a private dataset, and a token of each kind."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from aggregator.access.agreements import Agreements
from aggregator.access.principals import Principal
from aggregator.access.tables import TokenRow
from aggregator.access.tokens import Tokens, digest
from aggregator.api import create_app
from aggregator.catalog import Catalog
from aggregator.release import publish
from shared.contract import RunContract
from shared.release.keys import read_private_key, write_key_pair

with warnings.catch_warnings():
    # Starlette's test client warns on import of what it imports itself.
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

DATASETS = ("public", "gated", "private")
FILES = {"README.md": b"# a card\n", "pairs.bin": bytes(range(256)) * 8000}
SETTINGS = "api_requests_a_minute = 0\n"


def make_home(folder: Path) -> Path:
    """A home with one version of each dataset."""
    (folder / "keys").mkdir(parents=True)
    (folder / "aggregator.toml").write_text(SETTINGS)
    write_key_pair(folder / "keys" / "release.key", folder / "keys" / "release.pub")
    key = read_private_key(folder / "keys" / "release.key")
    catalog = Catalog(folder / "catalog.sqlite")
    for name in DATASETS:
        catalog.configure(
            "fedstill",
            name,
            visibility=name,
            agreement="Use it well.\n" * (name == "gated") or None,
        )
        publish(home=folder, contract=RunContract(name=name), files=FILES, key=key)
    catalog.close()
    return folder


def make_tokens(home: Path) -> dict[str, str]:
    """A token of each role, by role; anonymous has an empty one."""
    catalog = Catalog(home / "catalog.sqlite")
    tokens = Tokens(catalog.database)

    def token(role: str, *names: str, scope: str = "read:dataset") -> str:
        named = [f"fedstill/{name}" for name in names]
        return tokens.create(role, scopes=[scope], datasets=named)[0]

    made = {
        "anonymous": "",
        "no scope": token("no-scope"),
        "reader": token("reader"),
        "other": token("other", "public"),
        "not accepted": token("not-accepted", "gated"),
        "accepted": token("accepted", "gated"),
        "named": token("named", "private"),
        "revoked": token("revoked"),
        "expired": token("expired"),
        "launch": token("launch", scope="launch:run"),
        "admin": token("admin", scope="admin"),
    }
    tokens.revoke("revoked")
    with catalog.database.session(write=True) as session:
        for row in session.query(TokenRow):
            if row.principal == "no-scope":
                row.scopes = ""
            if row.principal == "expired":
                row.expires_at = "2020-01-01T00:00:00.000Z"
    gated = catalog.describe("fedstill", "gated")
    assert gated is not None
    found = tokens.find(digest(made["accepted"]))
    assert found is not None
    who = Principal("accepted", frozenset({"read:dataset"}), frozenset(), found.id)
    Agreements(catalog.database).accept(who, gated, gated.agreement_version)
    catalog.close()
    return made


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_home(tmp_path / "home")


@pytest.fixture
def tokens(home: Path) -> dict[str, str]:
    return make_tokens(home)


@pytest.fixture
def client(home: Path) -> Iterator[TestClient]:
    with TestClient(create_app(home), raise_server_exceptions=False) as opened:
        yield opened
