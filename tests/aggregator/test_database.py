import importlib
import sqlite3
import sys
import time
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from setuptools import find_packages

from aggregator.catalog import Catalog
from aggregator.database import STEPS, Database, DatabaseError, newest_step
from aggregator.schema import Base

BEFORE_THERE_WERE_STEPS = """
CREATE TABLE datasets (
  id INTEGER NOT NULL PRIMARY KEY, namespace VARCHAR(63) NOT NULL, name VARCHAR(63) NOT NULL,
  last_number INTEGER NOT NULL, UNIQUE (namespace, name));
CREATE TABLE versions (
  id INTEGER NOT NULL PRIMARY KEY, dataset_id INTEGER NOT NULL REFERENCES datasets (id),
  number INTEGER NOT NULL, digest VARCHAR(64) NOT NULL, created_at VARCHAR(32) NOT NULL,
  summary JSON NOT NULL, UNIQUE (dataset_id, number), UNIQUE (dataset_id, digest));
CREATE TABLE files (
  version_id INTEGER NOT NULL REFERENCES versions (id), path VARCHAR(128) NOT NULL,
  bytes INTEGER NOT NULL, sha256 VARCHAR(64) NOT NULL, PRIMARY KEY (version_id, path));
CREATE TRIGGER versions_no_update BEFORE UPDATE ON versions
  BEGIN SELECT RAISE(ABORT, 'a published version never changes'); END;
INSERT INTO datasets VALUES (1, 'fedstill', 'ct-demo', 2), (2, 'fedstill', 'never', 0);
INSERT INTO versions VALUES (1, 1, 1, 'aa', '2026-01-31T12:00:00.000Z', '{"task": "ct-denoise"}'),
  (2, 1, 2, 'bb', '2026-02-01T12:00:00.000Z', '{}');
INSERT INTO files VALUES (1, 'README.md', 3, 'cc'), (2, 'README.md', 4, 'dd');
"""


def test_the_steps_make_the_tables_that_the_code_expects(address: Path | str) -> None:
    package = STEPS.parent
    for file in package.rglob("*.py"):
        if "(Base):" in file.read_text("utf-8"):
            importlib.import_module(
                ".".join(file.relative_to(package.parent).with_suffix("").parts)
            )
    database = Database(address)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    database.close()


def test_each_step_is_named_by_its_number_and_packaged() -> None:
    script = ScriptDirectory(str(STEPS))
    for step in script.walk_revisions():
        assert Path(step.path).name.startswith(f"{step.revision}_")
    assert script.get_heads() == [newest_step()], "two steps follow the same one"
    assert {"aggregator.migrations", "aggregator.migrations.versions"} <= set(
        find_packages(str(STEPS.parent.parent), include=["aggregator*"])
    )


def test_a_catalog_from_before_there_were_steps_is_taken_over(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "catalog.sqlite") as old:
        old.executescript(BEFORE_THERE_WERE_STEPS)
    old.close()
    catalog = Catalog(tmp_path / "catalog.sqlite")
    first, newest = (catalog.find("fedstill", "ct-demo", name) for name in ("v1", "main"))
    assert first is not None
    assert newest is not None
    assert (first.digest, first.summary, first.files[0].sha256) == (
        "aa",
        {"task": "ct-denoise"},
        "cc",
    )
    assert (newest.number, newest.dataset.visibility) == (2, "public")
    assert catalog.find("fedstill", "never", "main") is None
    head = catalog.head("fedstill", "ct-demo")
    assert head is not None
    assert head.sequence == 2
    catalog.close()
    with (
        sqlite3.connect(tmp_path / "catalog.sqlite") as connection,
        pytest.raises(sqlite3.IntegrityError, match="never changes"),
    ):
        connection.execute("DELETE FROM files")
    connection.close()


def test_opening_what_is_there_costs_one_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Database(tmp_path / "a.sqlite").close()
    monkeypatch.setattr(Database, "_upgrade", None)
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        Database(tmp_path / "a.sqlite").close()
        times.append(time.perf_counter() - begun)
    assert min(times) < 0.05


def test_the_schema_of_a_later_version_is_not_touched(address: Path | str) -> None:
    database = Database(address)
    with database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    with pytest.raises(DatabaseError, match="later fedstill"):
        Database(address)


def test_connections_that_the_server_ended_are_no_error(empty_postgresql: str) -> None:
    catalog = Catalog(empty_postgresql)
    assert catalog.datasets() == (0, [])
    with psycopg.connect(empty_postgresql, autocommit=True) as connection:
        ended = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchall()
    assert ended
    assert catalog.datasets() == (0, [])
    catalog.close()


def test_what_the_servers_defaults_are_does_not_matter(empty_postgresql: str) -> None:
    with psycopg.connect(empty_postgresql, autocommit=True) as connection:
        name = connection.info.dbname
        for default in (
            "default_transaction_isolation = 'serializable'",
            "synchronous_commit = off",
        ):
            connection.execute(f"ALTER DATABASE {name} SET {default}".encode())
    database = Database(empty_postgresql)
    shown = []
    for write in (True, False, True):
        with database.session(write=write) as session:
            connection = session.connection()
            shown.append(connection.exec_driver_sql("SHOW transaction_isolation").scalar())
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
    assert shown == ["read committed", "repeatable read", "read committed"]
    database.close()


def test_an_upgrade_that_fails_changes_nothing(
    address: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of disk")

    with monkeypatch.context() as broken:
        broken.setattr("alembic.runtime.migration.HeadMaintainer.update_to_step", fail)
        with pytest.raises(RuntimeError, match="out of disk"):
            Database(address)
    database = Database(address)
    with database.session() as session:
        assert session.connection().exec_driver_sql("SELECT count(*) FROM datasets").scalar() == 0
    database.close()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("not a url with hunter2", "is no URL"),
        ("mysql://me:hunter2@host/db", "mysql"),
        ("postgresql+asyncpg://me:hunter2@host/db", "asyncpg"),
        ("postgresql://me:hunter2@127.0.0.1:1/db", "me:\\*\\*\\*@127.0.0.1.* cannot be opened"),
    ],
)
def test_what_cannot_be_opened_is_named_without_its_password(address: str, message: str) -> None:
    with pytest.raises(DatabaseError, match=message) as caught:
        Database(address)
    assert "hunter2" not in str(caught.value)
    assert "database" in str(caught.value)


def test_what_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "catalog.sqlite").write_text("these are the notes of a person" * 100)
    with pytest.raises(DatabaseError, match=r"catalog.sqlite: cannot be opened \(file is not a"):
        Database(tmp_path / "catalog.sqlite")
    with pytest.raises(DatabaseError, match="cannot be opened"):
        Database(tmp_path / "no folder" / "catalog.sqlite")


def test_a_missing_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(DatabaseError, match=r"fedstill\[postgresql\]"):
        Database("postgresql://me@localhost/db")
