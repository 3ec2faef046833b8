import json
import sqlite3
import time
from contextlib import closing
from html import unescape

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi.testclient import TestClient

from aggregator.desk.hospitals import federation, presences
from aggregator.heard import keep_heard
from aggregator.home import AggregatorHome
from tests.aggregator.desk.conftest import FIRST


def public_key() -> str:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


@pytest.fixture
def enrolled(home: AggregatorHome) -> AggregatorHome:
    for name in ("hospital-a", "hospital-b"):
        record = {"version": 1, "name": name, "flower_public_key": public_key()}
        (home.sites / f"{name}.json").write_text(json.dumps(record))
    home.revoked.mkdir()
    gone = {"version": 1, "name": "hospital-z", "flower_public_key": public_key()}
    (home.revoked / "hospital-z-1.json").write_text(json.dumps(gone))
    return home


def write_nodes(home: AggregatorHome, *rows: tuple[str, str, float, float]) -> None:
    home.database.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(home.database)) as database, database:
        database.execute(
            "CREATE TABLE node (name VARCHAR, status VARCHAR, online_until FLOAT, "
            "heartbeat_interval FLOAT)"
        )
        database.executemany("INSERT INTO node VALUES (?, ?, ?, ?)", rows)


def test_who_is_there_is_read_from_the_superlinks_database(enrolled: AggregatorHome) -> None:
    now = time.time()
    write_nodes(
        enrolled,
        ("hospital-a", "online", now + 50, 30.0),
        ("hospital-b", "online", now - 5, 30.0),
        ("hospital-z", "unregistered", now + 50, 30.0),
    )
    found = {one.name: one for one in federation(enrolled).sites}
    assert [found[name].online for name in ("hospital-a", "hospital-b")] == [True, False]
    assert found["hospital-a"].heartbeat == pytest.approx(now - 10)
    assert found["hospital-z"].revoked and found["hospital-z"].online is None
    assert [run.name for run in found["hospital-a"].runs] == ["second", "first"]
    assert found["hospital-a"].runs[0].why == "has not been asked yet"


def test_without_a_superlink_nothing_is_made_up(enrolled: AggregatorHome) -> None:
    assert presences(enrolled) == {}
    enrolled.database.parent.mkdir(exist_ok=True)
    enrolled.database.write_bytes(b"not a database")
    assert presences(enrolled) == {}
    assert {one.online for one in federation(enrolled).sites} == {None}


def test_flowers_own_table_is_what_is_read() -> None:
    """The columns are those of the pinned Flower: a change of its schema fails here."""
    from flwr.supercore.state.schema.linkstate_tables import create_linkstate_metadata

    columns = set(create_linkstate_metadata().tables["node"].columns.keys())
    assert {"name", "status", "online_until", "heartbeat_interval"} <= columns


def test_the_page_and_its_twin_show_the_same(enrolled: AggregatorHome, desk: TestClient) -> None:
    page, twin = desk.get("/desk/sites"), desk.get("/api/desk/sites").json()
    assert page.status_code == 200
    for site in twin["sites"]:
        assert f'id="{site["name"]}"' in page.text
        for run in site["runs"]:
            assert f"/desk/runs/{run['digest'][:16]}" in page.text
    assert FIRST.digest() in str(twin)
    assert "ecdsa" not in page.text + str(twin)


def test_what_a_site_last_said_is_shown(enrolled: AggregatorHome, desk: TestClient) -> None:
    said = {"verdict": "refuse", "code": "policy", "incident": "0123456789ab"}
    standing = {"version": "9.8.7", "policy": "cd" * 32, "budget": {"requests_today": 7}}
    keep_heard(enrolled, FIRST, [{"site": "hospital-a", **said, **standing}])
    keep_heard(enrolled, FIRST, [{"site": "hospital-b", "verdict": "accept"}])
    page, twin = unescape(desk.get("/desk/sites").text), desk.get("/api/desk/sites").json()
    heard = {one["name"]: one for one in twin["sites"]}["hospital-a"]
    assert heard["heard"]["version"] == "9.8.7" and heard["heard"]["budget"]["requests_today"] == 7
    first, second = page.split('id="hospital-b"')
    for told in (
        "refuse",
        "policy allows",
        "incident 0123456789ab",
        "9.8.7",
        "cd" * 8,
        "7 requests",
    ):
        assert told in first
    assert "accept" in second and "not told" in second


def test_a_damaged_record_is_named(enrolled: AggregatorHome, desk: TestClient) -> None:
    (enrolled.sites / "hospital-a.json").write_text("{")
    answer = desk.get("/api/desk/sites")
    assert answer.status_code == 409
    assert "hospital-a.json" in answer.json()["error"]
    assert str(enrolled.root) not in answer.text
