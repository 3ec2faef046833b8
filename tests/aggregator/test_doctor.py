import json
import os
import socket
import sqlite3
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typer.testing import CliRunner

from aggregator import certificates
from aggregator.access.tokens import Tokens
from aggregator.catalog import Catalog
from aggregator.cli import app
from aggregator.doctor import checks
from aggregator.enrolment import record_site
from aggregator.heard import keep_heard
from aggregator.home import AggregatorHome, create_home
from aggregator.occupancy import occupied
from aggregator.release import publish
from aggregator.runs import prepare_run
from shared.contract import RunContract
from shared.enrolment import Enrolment
from shared.findings import Finding
from shared.release.keys import read_private_key


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture
def home(tmp_path: Path) -> AggregatorHome:
    link, api = free_ports(2)
    made = create_home(tmp_path / "home", {"superlink_port": link, "api_port": api})
    contract = RunContract(name="ct-demo")
    key = read_private_key(made.release_key)
    publish(home=made.root, contract=contract, files={"README.md": b"# x"}, key=key)
    return made


def found(home: AggregatorHome, check: str, **options: bool) -> Finding:
    (one,) = [one for one in checks(home.root, **options) if one.name == check]
    return one.run()


def setting(home: AggregatorHome, line: str) -> AggregatorHome:
    name = line.partition(" =")[0]
    lines = home.settings_file.read_text().splitlines()
    kept = [one for one in lines if not one.startswith(f"{name} =")]
    home.settings_file.write_text("\n".join([*kept, line]))
    return AggregatorHome(home.root)


def documents(home: Path) -> dict[Path, bytes]:
    transient = ("-shm", "-wal")
    files = (p for p in home.rglob("*") if p.is_file() and not p.name.endswith(transient))
    return {path: path.read_bytes() for path in files}


def test_a_home_that_is_well_is_green_and_nothing_is_changed(home: AggregatorHome) -> None:
    before = documents(home.root)
    result = CliRunner().invoke(app, ["doctor", "--home", str(home.root), "--json", "--deep"])
    told: dict[str, Any] = json.loads(result.stdout)
    bad = [one for one in told["checks"] if one["verdict"] != "good" and one["check"] != "disk"]
    assert (result.exit_code, told["exit_code"], bad) == (0, 0, [])
    assert documents(home.root) == before
    table = CliRunner().invoke(app, ["doctor", "--home", str(home.root)]).stdout
    assert "How to fix" in table


def test_a_home_that_is_none_says_what_to_do(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--home", str(tmp_path / "none"), "--json"])
    (only,) = json.loads(result.stdout)["checks"]
    assert result.exit_code == 1
    assert "aggregator init" in only["problem"]


def test_a_port_that_another_program_has_is_named_with_its_setting(home: AggregatorHome) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", home.settings.api_port))
        taken.listen()
        api = found(home, "API")
        assert (api.verdict, "api_port" in api.fix) == ("failed", True)
        with occupied(home):  # our own `up` then has it, and has to answer
            assert found(home, "SuperLink").verdict == "failed"
    assert found(home, "API").verdict == "good"


@pytest.mark.parametrize(
    ("days", "verdict", "says"),
    [(397, "good", "good for 396"), (40, "warning", "in 10 days"), (20, "warning", "start"),
     (-3, "failed", "ended")],
)  # fmt: skip
def test_a_certificate_is_told_of_before_it_ends(
    home: AggregatorHome, monkeypatch: pytest.MonkeyPatch, days: int, verdict: str, says: str
) -> None:
    (home.tls / "server.crt").unlink()
    monkeypatch.setattr(certificates, "SERVER_DAYS", days)
    if days < 0:
        original = certificates._builder

        def earlier(**options: Any) -> Any:
            builder = original(**{**options, "days": 1})
            now = builder._not_valid_before
            builder._not_valid_before = now.replace(year=now.year - 1)
            builder._not_valid_after = builder._not_valid_after.replace(year=now.year - 1)
            return builder

        monkeypatch.setattr(certificates, "_builder", earlier)
    certificates.ensure_certificates(home.tls, names=["localhost"])
    one = found(home, "certificate")
    assert one.verdict == verdict
    assert says in f"{one.problem} {one.fix}"


def test_a_certificate_of_another_ca_or_name_or_key_is_found(home: AggregatorHome) -> None:
    other = create_home(home.root.parent / "other", {})
    (home.tls / "server.crt").write_bytes((other.tls / "server.crt").read_bytes())
    assert "not issued" in found(home, "certificate").problem
    (home.tls / "ca.crt").write_bytes((other.tls / "ca.crt").read_bytes())
    assert "not the key" in found(home, "CA").problem
    assert "not its key" in found(home, "certificate").problem
    (home.tls / "server.key").write_bytes((other.tls / "server.key").read_bytes())
    assert found(home, "certificate").verdict == "good"
    renamed = setting(home, 'public_name = "aggregator.example.org"')
    assert "not for aggregator.example.org" in found(renamed, "certificate").problem
    (home.tls / "ca.crt").unlink()
    assert [found(home, one).verdict for one in ("CA", "certificate")] == ["failed", "unjudged"]


def test_keys_are_those_that_researchers_are_told_of(home: AggregatorHome) -> None:
    os.chmod(home.release_key, 0o644)  # noqa: PTH101
    assert "0644" in found(home, "key files").problem
    os.chmod(home.release_key, 0o600)  # noqa: PTH101
    away = home.release_key.rename(home.root / "away.key")
    assert "kept elsewhere" in found(home, "keys").problem
    other = create_home(home.root.parent / "other", {})
    home.release_key.write_bytes(other.release_key.read_bytes())
    assert "not the release key" in found(home, "keys").problem
    away.replace(home.release_key)
    (home.root / "keys" / "head.key").unlink()
    assert found(home, "keys").verdict == "failed"


def test_a_catalog_that_lost_bytes_is_found(home: AggregatorHome) -> None:
    assert isinstance(home.catalog, Path)
    with sqlite3.connect(home.catalog) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    content = bytearray(home.catalog.read_bytes())
    for at in range(4096, len(content), 4096):
        content[at + 100 : at + 3000] = b"\xff" * 2900
    home.catalog.write_bytes(content)
    assert found(home, "catalog").verdict == "failed"
    assert found(home, "blobs").verdict in ("unjudged", "failed")


def test_a_catalog_of_another_version_is_named(home: AggregatorHome) -> None:
    assert isinstance(home.catalog, Path)
    for step, verdict in (("0001", "warning"), ("9999", "failed")):
        with sqlite3.connect(home.catalog) as database:
            database.execute("UPDATE alembic_version SET version_num = ?", (step,))
        database.close()
        assert found(home, "catalog").verdict == verdict


def test_a_postgresql_catalog_is_looked_at_and_its_absence_told(
    home: AggregatorHome, empty_postgresql: str
) -> None:
    there = setting(home, f'database = "{empty_postgresql}"')
    assert found(there, "catalog").verdict == "warning", "it has no tables yet"
    Catalog(empty_postgresql).close()
    assert found(there, "catalog").verdict == "good"
    assert found(there, "clock").verdict == "good"
    away = setting(home, 'database = "postgresql://me:hunter2@127.0.0.1:1/db"')
    one = found(away, "catalog")
    assert (one.verdict, "hunter2" in one.problem) == ("failed", False)
    assert found(away, "blobs").verdict == "unjudged"


def test_a_blob_that_is_gone_or_changed_is_found(home: AggregatorHome) -> None:
    (blob, *_) = (home.root / "blobs").glob("*/*")
    content = blob.read_bytes()
    blob.chmod(0o600)
    blob.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert "not as published" in found(home, "blobs", deep=True).problem
    blob.unlink()
    assert "missing" in found(home, "blobs").problem
    blob.write_bytes(content)
    assert found(home, "blobs", deep=True).verdict == "good"


def test_flowers_database_is_held_against_itself(home: AggregatorHome) -> None:
    assert "none yet" in found(home, "Flower's database").problem
    with sqlite3.connect(home.database) as database:
        database.execute("CREATE TABLE objects (content BLOB)")
        database.executemany("INSERT INTO objects VALUES (?)", [(bytes(9000),)] * 50)
        database.execute("DELETE FROM objects")
    database.close()
    one = found(home, "Flower's database")
    assert (one.verdict, "0.4 of them unused" in one.problem) == ("good", True)
    home.database.write_bytes(b"SQLite format 3\0" + bytes(5000))
    assert found(home, "Flower's database").verdict == "failed"


def test_a_run_that_needs_somebody_is_named(home: AggregatorHome) -> None:
    assert found(home, "runs").verdict == "good"
    contract = RunContract(name="ct-demo")
    run = prepare_run(home, contract, sites=["hospital-a"], public=None)
    state = {"state": "failed", "since": time.time(), "reason": "below quorum"}
    (run / "state.json").write_text(json.dumps(state))
    one = found(home, "runs")
    assert (one.verdict, "below quorum" in one.problem) == ("warning", True)
    (run / "plan.json").write_text("{}")
    assert found(home, "runs").verdict == "failed"


def test_a_clock_that_was_set_back_is_found(home: AggregatorHome) -> None:
    later = time.time() + 7200
    os.utime(home.settings_file, (later, later))
    assert "120 minutes newer" in found(home, "clock").problem


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["api_port = 7000", "superlink_port = 7000"], "both 7000"),
        (['api_host = "0.0.0.0"', "behind_proxy = true"], "X-Forwarded-For"),
        (['api_host = "0.0.0.0"'], "without TLS"),
        (['accel_prefix = "/blobs/"'], "accel_prefix without behind_proxy"),
        (['accel_prefix = "/b/"', "behind_proxy = true", 'storage = "s3://b"'], "does nothing"),
        (["public_port = 443"], "their own machine"),
    ],
)
def test_settings_that_make_no_sense_together(
    home: AggregatorHome, lines: list[str], says: str
) -> None:
    assert found(home, "settings together").verdict == "good"
    for line in lines:
        home = setting(home, line)
    assert says in found(home, "settings together").problem


def test_two_principals_need_two_people_with_a_token(home: AggregatorHome) -> None:
    home = setting(home, "two_principals = true")
    catalog = Catalog(home.catalog)
    tokens = Tokens(catalog.database)
    tokens.create("anna", scopes=["launch:run"])
    tokens.create("anna", scopes=["admin"])
    tokens.create("carl", scopes=["read:dataset"])
    assert "1 has a valid token" in found(home, "two principals").problem
    tokens.create("bert", scopes=["launch:run"])
    assert found(home, "two principals").verdict == "good"
    catalog.close()


def test_sites_of_other_versions_are_named_once_they_have_told(home: AggregatorHome) -> None:
    assert found(home, "sites").verdict == "good"
    for name in ("st-anna", "st-bob", "st-carl"):
        key = ec.generate_private_key(ec.SECP384R1()).public_key()
        text = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        record_site(home, Enrolment(name=name, flower_public_key=text))
        home.kits.mkdir(exist_ok=True)
        (home.kits / f"{name}.kit.json").write_text("{}")
    own = version("fedstill")
    told: dict[str, str | None] = {"st-anna": own, "st-bob": "0.0.1", "st-carl": None, "x": "9"}
    verdicts = [{"site": name, "verdict": "accept", "version": one} for name, one in told.items()]
    keep_heard(home, RunContract(name="x"), [verdicts[0], *verdicts[2:3]])
    assert found(home, "sites").verdict == "good", "who tells none is not of another"
    keep_heard(home, RunContract(name="x"), verdicts)
    skewed = found(home, "sites")
    assert skewed.verdict == "warning"
    assert skewed.problem == f"st-bob has 0.0.1, this is {own}", "and x is not enrolled"
