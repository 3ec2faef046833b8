"""What was published stays as it is, to the bit, whatever happens afterwards."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from aggregator import database
from aggregator.api import create_app
from aggregator.catalog import Catalog, Version
from aggregator.home import AggregatorHome
from aggregator.release import publish
from shared.contract import RunContract
from shared.release.keys import read_private_key, write_key_pair

STEP = """
import sqlalchemy as sa
from alembic import op

revision = "9998"
down_revision = "{}"


def upgrade():
    op.create_table("later", sa.Column("id", sa.Integer(), primary_key=True))
    op.add_column("datasets", sa.Column("later", sa.Integer(), server_default="1"))
"""


@pytest.fixture(params=["here", "elsewhere"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A home with one version of ``ct-demo``, kept in it or in PostgreSQL and S3."""
    folder = tmp_path / "home"
    database = storage = ""
    if request.param == "elsewhere":
        database, storage = map(request.getfixturevalue, ("empty_postgresql", "bucket"))
    (folder / "keys").mkdir(parents=True)
    write_key_pair(folder / "keys" / "release.key", folder / "keys" / "release.pub")
    (folder / "aggregator.toml").write_text(f'database = "{database}"\nstorage = "{storage}"\n')
    add(folder, b"first")
    return folder


def add(home: Path, content: bytes) -> Version:
    return publish(
        home=home,
        contract=RunContract(name="ct-demo"),
        files={"README.md": b"# ct-demo", "data.bin": content * 100_000},
        key=read_private_key(home / "keys" / "release.key"),
    )


def bytes_of(home: Path, number: int) -> dict[str, str]:
    """What a client gets of a version: the answer about it, and each file's hash."""
    with TestClient(create_app(home)) as client:
        place = "/api/datasets/fedstill/ct-demo/revision"
        about = client.get(f"{place}/v{number}").json()
        found = {"digest": about["digest"], "createdAt": about["createdAt"]}
        for file in about["siblings"]:
            path = f"/datasets/fedstill/ct-demo/resolve/v{number}/{file['rfilename']}"
            content = client.get(path).content
            found[file["rfilename"]] = hashlib.sha256(content).hexdigest()
            assert found[file["rfilename"]] == file["sha256"]
            part = client.get(path, headers={"Range": "bytes=1-40"}).content
            assert part == content[1:41]
        return found


def a_later_version(home: Path) -> None:
    assert add(home, b"second").number == 2


def a_withdrawal(home: Path) -> None:
    add(home, b"second")
    catalog = Catalog(AggregatorHome(home).catalog)
    catalog.withdraw("fedstill", "ct-demo", 2, "a test")
    catalog.close()
    assert add(home, b"third").number == 3


def another_key(home: Path) -> None:
    for file in (home / "keys").iterdir():
        file.unlink()
    write_key_pair(home / "keys" / "release.key", home / "keys" / "release.pub")
    assert add(home, b"first").number == 1, "the same content was signed again"
    assert add(home, b"second").number == 2


def who_may_have_it(home: Path) -> None:
    catalog = Catalog(AggregatorHome(home).catalog)
    catalog.configure("fedstill", "ct-demo", visibility="gated", agreement="Be good.")
    catalog.configure("fedstill", "ct-demo", visibility="public")
    catalog.close()


def a_later_schema(home: Path) -> None:
    # In effect until the test ends: an earlier fedstill would refuse what the step made.
    later = home / "migrations"
    shutil.copytree(database.STEPS, later)
    (later / "versions" / "9998_later.py").write_text(STEP.format(database.newest_step()))
    database.STEPS = later
    catalog = Catalog(AggregatorHome(home).catalog)
    with catalog.database.engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT later FROM datasets").scalar() == 1
    catalog.close()
    assert add(home, b"second").number == 2


@pytest.mark.parametrize(
    "event", [a_later_version, a_withdrawal, another_key, who_may_have_it, a_later_schema]
)
def test_a_version_stays_to_the_bit(
    home: Path, event: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "STEPS", database.STEPS)
    before = bytes_of(home, 1)
    assert len(before) >= 8
    event(home)
    assert bytes_of(home, 1) == before
