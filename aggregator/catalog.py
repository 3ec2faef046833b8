"""The catalog: which datasets and versions are published, and which blobs they consist of.

SQLite in WAL mode with ``synchronous=FULL``; the schema is created on opening. A version and its
files are inserted in one transaction after its blobs are stored, and triggers refuse to change or
delete one, so a version is absent or complete and for ever the same. A dataset counts its versions:
a number is given out once.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Connection,
    Engine,
    ForeignKey,
    MetaData,
    String,
    UniqueConstraint,
    create_engine,
    event,
    func,
    select,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.pool import ConnectionPoolEntry


class Base(DeclarativeBase):
    """Tables of the catalog."""


class DatasetRow(Base):
    """A dataset: a name, and how many versions it has had."""

    __tablename__ = "datasets"
    __table_args__ = (UniqueConstraint("namespace", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    namespace: Mapped[str] = mapped_column(String(63))
    name: Mapped[str] = mapped_column(String(63))
    last_number: Mapped[int] = mapped_column(default=0)
    versions: Mapped[list["VersionRow"]] = relationship(
        back_populates="dataset", order_by="VersionRow.number"
    )


class VersionRow(Base):
    """A published version."""

    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("dataset_id", "number"),
        UniqueConstraint("dataset_id", "digest"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    dataset_id: Mapped[int] = mapped_column(ForeignKey("datasets.id"), index=True)
    number: Mapped[int]
    digest: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[str] = mapped_column(String(32))
    summary: Mapped[dict[str, Any]] = mapped_column(JSON)
    dataset: Mapped[DatasetRow] = relationship(back_populates="versions")
    files: Mapped[list["FileRow"]] = relationship(order_by="FileRow.path")


class FileRow(Base):
    """A file of a version: a name for a blob."""

    __tablename__ = "files"

    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    path: Mapped[str] = mapped_column(String(128), primary_key=True)
    bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))


@event.listens_for(Base.metadata, "after_create")
def _forbid_changes(_: MetaData, connection: Connection, **__: Any) -> None:
    for table in ("versions", "files"):
        for change in ("UPDATE", "DELETE"):
            connection.exec_driver_sql(
                f"CREATE TRIGGER IF NOT EXISTS {table}_no_{change.lower()} "
                f"BEFORE {change} ON {table} "
                "BEGIN SELECT RAISE(ABORT, 'a published version never changes'); END"
            )


@dataclass(frozen=True)
class StoredFile:
    """A file of a published version."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Version:
    """A published version."""

    namespace: str
    name: str
    number: int
    digest: str
    created_at: str
    """UTC, as 2026-01-31T12:00:00.000Z: the one form that Hugging Face clients read."""
    summary: dict[str, Any]
    files: tuple[StoredFile, ...]

    @property
    def commit(self) -> str:
        """The 40-hex revision Hugging Face clients use."""
        return self.digest[:40]

    def file(self, path: str) -> StoredFile | None:
        """The file of that name."""
        return next((file for file in self.files if file.path == path), None)


class Catalog:
    """The catalog in a SQLite file; opening it creates what is missing."""

    def __init__(self, path: Path) -> None:
        self.engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 30.0})
        event.listen(self.engine, "connect", _prepare)
        event.listen(self.engine, "begin", _begin)
        with self._session(write=True) as session:
            Base.metadata.create_all(session.connection())

    def close(self) -> None:
        """Closes the connections."""
        self.engine.dispose()

    def datasets(self, *, offset: int = 0, limit: int = 100) -> tuple[int, list[Version]]:
        """How many datasets there are, and the newest version of some, by name."""
        published = select(DatasetRow).where(DatasetRow.last_number > 0)
        with self._session() as session:
            total = session.scalar(select(func.count()).select_from(published.subquery())) or 0
            rows = session.scalars(
                published.order_by(DatasetRow.namespace, DatasetRow.name)
                .offset(offset)
                .limit(limit)
            )
            return total, [_version(row.versions[-1]) for row in rows]

    def versions(self, namespace: str, name: str) -> list[Version]:
        """The versions of a dataset, oldest first; none where there is no such dataset."""
        with self._session() as session:
            dataset = _dataset(session, namespace, name)
            return [_version(row) for row in dataset.versions] if dataset else []

    def find(self, namespace: str, name: str, revision: str) -> Version | None:
        """A version by ``main`` (the newest), ``vN``, or its digest (first 40 or all 64 digits)."""
        query = (
            select(VersionRow)
            .join(VersionRow.dataset)
            .where(DatasetRow.namespace == namespace, DatasetRow.name == name)
            .order_by(VersionRow.number.desc())
            .limit(1)
        )
        if revision != "main":
            number = revision.removeprefix("v")
            if revision.startswith("v") and number.isascii() and number.isdecimal():
                if len(number) > 9 or str(int(number)) != number:
                    return None
                query = query.where(VersionRow.number == int(number))
            elif len(revision) in (40, 64):
                query = query.where(func.substr(VersionRow.digest, 1, len(revision)) == revision)
            else:
                return None
        with self._session() as session:
            row = session.scalar(query)
            return _version(row) if row else None

    def publish(
        self,
        *,
        namespace: str,
        name: str,
        digest: str,
        summary: Mapping[str, Any],
        files: Callable[[int], list[StoredFile]],
    ) -> Version:
        """Adds a version, or returns the one that has this digest already.

        ``files`` is called with the new number and must store every blob before it returns: only
        then is the row inserted. One publisher at a time; if anything fails, nothing was added.
        """
        with self._session(write=True) as session:
            dataset = _dataset(session, namespace, name)
            if dataset is None:
                dataset = DatasetRow(namespace=namespace, name=name, last_number=0)
                session.add(dataset)
                session.flush()
            for row in dataset.versions:
                if row.digest == digest:
                    return _version(row)
            number = dataset.last_number + 1
            stored = files(number)
            dataset.last_number = number
            row = VersionRow(
                dataset=dataset,
                number=number,
                digest=digest,
                created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
                summary=dict(summary),
                files=[FileRow(path=f.path, bytes=f.bytes, sha256=f.sha256) for f in stored],
            )
            session.add(row)
            session.flush()
            return _version(row)

    @contextmanager
    def _session(self, *, write: bool = False) -> Iterator[Session]:
        engine: Engine = self.engine.execution_options(immediate=write)
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session


def _prepare(connection: Any, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # transactions begin where we say, see _begin
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    # A writer takes the lock at once: two publishers queue, in place of one failing at its commit.
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _dataset(session: Session, namespace: str, name: str) -> DatasetRow | None:
    return session.scalar(
        select(DatasetRow).where(DatasetRow.namespace == namespace, DatasetRow.name == name)
    )


def _version(row: VersionRow) -> Version:
    return Version(
        namespace=row.dataset.namespace,
        name=row.dataset.name,
        number=row.number,
        digest=row.digest,
        created_at=row.created_at,
        summary=row.summary,
        files=tuple(StoredFile(path=f.path, bytes=f.bytes, sha256=f.sha256) for f in row.files),
    )
