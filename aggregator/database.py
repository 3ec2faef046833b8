"""The aggregator's database: SQLite in a file, or PostgreSQL by URL.

Opening it brings the schema to the newest step of ``aggregator/migrations``, under a lock and in
one transaction; a database that is there already costs one look. SQLite is in WAL mode with
``synchronous=FULL``, PostgreSQL with ``synchronous_commit``: what was committed stays.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

DIALECTS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}
STEPS = Path(__file__).parent / "migrations"
UPGRADE_LOCK = 0x66656473
"""Of PostgreSQL's advisory locks, that of whoever brings the schema up."""


class DatabaseError(RuntimeError):
    """A database that cannot be opened; names it, without its password, and the fix."""


class Database:
    """An open database whose schema is this code's."""

    def __init__(self, address: Path | str) -> None:
        """Opens a SQLite file, or ``postgresql://user@host/name``; raises ``DatabaseError``."""
        url = _url(address)
        self.name = str(address) if isinstance(address, Path) else url.render_as_string()
        try:
            self.engine = _engine(url)
        except ModuleNotFoundError:
            raise DatabaseError(
                f"{self.name}: this needs psycopg: install fedstill[postgresql]"
            ) from None
        try:
            with self.engine.connect() as connection:
                present = _step(connection)
            if present != newest_step():
                self._upgrade()
        except DBAPIError as error:
            self.close()
            reason = str(error.orig).strip().split("\n")[0]
            raise DatabaseError(
                f"{self.name}: cannot be opened ({reason}): check `database` in aggregator.toml"
            ) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the connections."""
        self.engine.dispose()

    @contextmanager
    def session(self, *, write: bool = False) -> Iterator[Session]:
        """A transaction: committed at the end, rolled back by an exception.

        One that reads sees the database of one moment. One that writes says so first: SQLite has
        one writer at a time, and the second waits here in place of failing at its commit.
        """
        options: dict[str, Any] = {"immediate": write}
        if not write and self.engine.dialect.name == "postgresql":
            options["isolation_level"] = "REPEATABLE READ"
        engine: Engine = self.engine.execution_options(**options)
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    def _upgrade(self) -> None:
        # Slow to import, and nothing else needs it.
        from alembic import command
        from alembic.config import Config

        with self.engine.execution_options(immediate=True).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": UPGRADE_LOCK})
            present = _step(connection)
            if present is not None and present > newest_step():
                raise DatabaseError(
                    f"{self.name}: was used by a later fedstill (step {present}, this one knows"
                    f" {newest_step()}): install that one"
                )
            config = Config()
            config.set_main_option("script_location", str(STEPS))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


@dataclass(frozen=True)
class Condition:
    """What a database says of itself."""

    step: str | None
    """Of its schema; None where it has no table yet."""
    problems: tuple[str, ...]
    """What its integrity check found wrong."""
    ahead_s: float | None = None
    """How far a server's clock is ahead of this machine's."""


def condition(address: Path | str) -> Condition:
    """Looks at a database, and changes nothing. Raises ``DatabaseError`` where it cannot."""
    engine = look(address)
    try:
        with engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                server = connection.execute(text("SELECT extract(epoch FROM clock_timestamp())"))
                ahead_s = float(server.scalar_one()) - time.time()
                return Condition(_step(connection), (), ahead_s)
            found = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check")]
            if found != ["ok"]:
                return Condition(None, tuple(found))
            orphans = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
            problems = tuple(f"a row of {row[0]} refers to none of {row[2]}" for row in orphans)
            return Condition(_step(connection), problems)
    except DBAPIError as error:
        raise DatabaseError(
            f"{engine.url.render_as_string()}: {str(error.orig).strip().split(chr(10))[0]}"
        ) from None
    finally:
        engine.dispose()


def look(address: Path | str) -> Engine:
    """An engine that does not bring the schema up; of a SQLite file, one that cannot write."""
    url = _url(address)
    if isinstance(address, Path):
        place = f"file:{quote(str(address))}?mode=ro"
        return create_engine(
            url,
            creator=lambda: sqlite3.connect(place, uri=True, timeout=30),
            poolclass=NullPool,
        )
    try:
        return _engine(url)
    except ModuleNotFoundError:
        raise DatabaseError(
            f"{url.render_as_string()}: this needs psycopg: install fedstill[postgresql]"
        ) from None


def newest_step() -> str:
    """The step of the schema that this code needs."""
    return max(file.name[:4] for file in (STEPS / "versions").glob("[0-9]*.py"))


def _step(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    step = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if step is None else str(step)


def _url(address: Path | str) -> URL:
    if isinstance(address, Path):
        return URL.create("sqlite", database=str(address))
    try:
        url = make_url(address)
    except ArgumentError:
        # The text may hold a password: it is not repeated.
        raise DatabaseError(
            "`database` in aggregator.toml is no URL: write postgresql://user@host/name"
        ) from None
    driver = DIALECTS.get(url.get_backend_name())
    if driver is None or url.drivername not in (driver, url.get_backend_name()):
        raise DatabaseError(
            f"`database` is for {url.drivername}: SQLite and PostgreSQL (psycopg) are supported"
        )
    return url.set(drivername=driver)


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": 30.0})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    return create_engine(
        url,
        pool_pre_ping=True,  # a server that was started again is no error
        isolation_level="READ COMMITTED",  # who waited for a lock sees what was done meanwhile
        connect_args={"connect_timeout": 10, "options": "-c synchronous_commit=on"},
    )


def _prepare_sqlite(connection: Any, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # transactions begin where we say, see _begin_sqlite
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
