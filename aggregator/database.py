"""The aggregator's database: SQLite in a file, or PostgreSQL by URL.

Opening it brings the schema to the newest step of ``aggregator/migrations``, under a lock and in
one transaction; a database that is there already costs one look. SQLite is in WAL mode with
``synchronous=FULL``, PostgreSQL with ``synchronous_commit``: what was committed stays.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

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
