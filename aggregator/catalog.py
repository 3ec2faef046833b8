"""The catalog: which datasets and versions are published, and which blobs they consist of.

A version and its files are inserted in one transaction after its blobs are stored, and triggers
refuse to change or delete one, so a version is absent or complete and for ever the same. A dataset
counts its versions: a number is given out once. A version can be withdrawn, for good: it keeps its
number and its bytes, and is handed out no more.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, false, func, select, true
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, contains_eager, joinedload

from aggregator.database import Database
from aggregator.schema import DatasetRow, FileRow, VersionRow, WithdrawalRow

Visibility = Literal["public", "gated", "private"]
MAX_REASON = 500
WITH_DATASET = (contains_eager(VersionRow.dataset), joinedload(VersionRow.withdrawal))


class CatalogError(ValueError):
    """What the catalog was asked and does not do; says why."""


@dataclass(frozen=True)
class StoredFile:
    """A file of a published version."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """A dataset: its name, and who may have it."""

    namespace: str
    name: str
    visibility: Visibility = "public"
    """``public``; ``gated``: to those who accepted the agreement; ``private``: to those named."""
    agreement_version: int = 0
    """0: there is no agreement."""
    agreement_text: str = ""
    last_number: int = field(default=0, compare=False)
    """The highest number given out; 0: nothing was published."""


@dataclass(frozen=True)
class Withdrawal:
    """That a version is handed out no more."""

    at: str
    reason: str


@dataclass(frozen=True)
class Version:
    """A published version."""

    dataset: Dataset
    number: int
    digest: str
    created_at: str
    """UTC, as 2026-01-31T12:00:00.000Z: the one form that Hugging Face clients read."""
    summary: dict[str, Any]
    files: tuple[StoredFile, ...]
    withdrawn: Withdrawal | None = None

    @property
    def namespace(self) -> str:
        """The dataset's."""
        return self.dataset.namespace

    @property
    def name(self) -> str:
        """The dataset's."""
        return self.dataset.name

    @property
    def commit(self) -> str:
        """The 40-hex revision Hugging Face clients use."""
        return self.digest[:40]

    def file(self, path: str) -> StoredFile | None:
        """The file of that name."""
        return next((file for file in self.files if file.path == path), None)


@dataclass(frozen=True)
class VersionEntry:
    """A version without its files, as a list of versions has it."""

    number: int
    digest: str
    created_at: str
    withdrawn: Withdrawal | None

    @property
    def commit(self) -> str:
        """The 40-hex revision Hugging Face clients use."""
        return self.digest[:40]


@dataclass(frozen=True)
class Head:
    """What of a dataset is published now: what a signed head says."""

    sequence: int
    """Grows by one with each version and each withdrawal, and never falls."""
    newest: VersionEntry | None
    """What ``main`` is; None where every version is withdrawn."""
    withdrawn: tuple[int, ...]


class Catalog:
    """The catalog in a SQLite file, or in PostgreSQL by URL; opening it creates what is missing."""

    def __init__(self, address: Path | str) -> None:
        """Raises ``DatabaseError``."""
        self.database = Database(address)

    def close(self) -> None:
        """Closes the connections."""
        self.database.close()

    def datasets(
        self,
        *,
        offset: int = 0,
        limit: int = 100,
        visible_to: Collection[str] | None = (),
        matching: str = "",
    ) -> tuple[int, list[Version]]:
        """How many datasets there are, and the newest version of some, by name.

        ``visible_to``: the private datasets, as ``namespace/name``, that are shown beside public
        and gated ones; None shows all. One with no version that is not withdrawn is left out.
        ``matching``: a part of the name or of the task, in any case.
        """
        shown = DatasetRow.newest_number.is_not(None) & _shown(visible_to)
        newest = (VersionRow.dataset_id == DatasetRow.id) & (
            VersionRow.number == DatasetRow.newest_number
        )
        counted, named = select(func.count()).select_from(DatasetRow), select(DatasetRow.id)
        if matching:
            shown &= _matches(matching)
            counted, named = counted.join(VersionRow, newest), named.join(VersionRow, newest)
        by_name = (DatasetRow.namespace, DatasetRow.name)
        # The page first, then its versions: else a database may look at every version there is.
        named = named.where(shown).order_by(*by_name).offset(offset).limit(limit)
        page = (
            select(VersionRow)
            .join(VersionRow.dataset)
            .where(newest, DatasetRow.id.in_(named))
            .options(*WITH_DATASET)
            .order_by(*by_name)
        )
        with self.database.session() as session:
            total = session.scalar(counted.where(shown)) or 0
            return total, _versions(session, session.scalars(page).all())

    def versions(
        self, namespace: str, name: str, *, offset: int = 0, limit: int = 100
    ) -> list[VersionEntry]:
        """Versions of a dataset, newest first; none where there is no such dataset."""
        query = (
            _of(select(VersionRow), namespace, name)
            .options(joinedload(VersionRow.withdrawal))
            .order_by(VersionRow.number.desc())
            .offset(offset)
            .limit(limit)
        )
        with self.database.session() as session:
            return [_entry(row) for row in session.scalars(query)]

    def find(self, namespace: str, name: str, revision: str) -> Version | None:
        """A version by ``main``, ``vN``, or its digest (first 40 or all 64 digits).

        ``main`` is the newest that is not withdrawn; where all are, the newest. A withdrawn one is
        found and says so: whoever asks decides.
        """
        query = (
            _of(select(VersionRow), namespace, name)
            .options(*WITH_DATASET)
            .order_by(VersionRow.number.desc())
            .limit(1)
        )
        if revision == "main":
            query = query.where(
                DatasetRow.newest_number.is_(None) | (VersionRow.number == DatasetRow.newest_number)
            )
        else:
            number = revision.removeprefix("v")
            if revision.startswith("v") and number.isascii() and number.isdecimal():
                if len(number) > 9 or str(int(number)) != number:
                    return None
                query = query.where(VersionRow.number == int(number))
            elif len(revision) in (40, 64):
                query = query.where(
                    func.substr(VersionRow.digest, 1, len(revision)) == _text(revision)
                )
            else:
                return None
        with self.database.session() as session:
            row = session.scalar(query)
            return _versions(session, [row])[0] if row else None

    def describe(self, namespace: str, name: str) -> Dataset | None:
        """A dataset, whether or not it has a version."""
        with self.database.session() as session:
            row = session.scalar(_named(namespace, name))
            return _dataset(row) if row else None

    def configure(
        self,
        namespace: str,
        name: str,
        *,
        visibility: Visibility | None = None,
        agreement: str | None = None,
    ) -> Dataset:
        """Sets who may have a dataset, also before its first version, so that none leaks.

        A changed ``agreement`` is a new version of it. Raises ``CatalogError`` for a gated dataset
        without an agreement.
        """
        with self.database.session(write=True) as session:
            row = _claim(session, namespace, name)
            if visibility is not None:
                row.visibility = visibility
            if agreement is not None and agreement != row.agreement_text:
                row.agreement_text = agreement
                row.agreement_version += 1
            if row.visibility == "gated" and not row.agreement_text.strip():
                raise CatalogError(f"{namespace}/{name} is to be gated and has no agreement")
            return _dataset(row)

    def head(self, namespace: str, name: str) -> Head | None:
        """What is published of a dataset, all of one moment; None where nothing ever was."""
        withdrawn = (
            _of(select(VersionRow.number), namespace, name)
            .join(WithdrawalRow, WithdrawalRow.version_id == VersionRow.id)
            .order_by(VersionRow.number)
        )
        with self.database.session() as session:
            dataset = session.scalar(_named(namespace, name))
            if dataset is None or not dataset.last_number:
                return None
            newest = session.scalar(
                select(VersionRow).where(
                    VersionRow.dataset_id == dataset.id, VersionRow.number == dataset.newest_number
                )
            )
            return Head(
                sequence=dataset.head_sequence,
                newest=_entry(newest) if newest else None,
                withdrawn=tuple(session.scalars(withdrawn)),
            )

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
        then is the row inserted. One publisher of a dataset at a time (SQLite: one of all); if
        anything fails, nothing was added, and the number goes to the next. Raises ``CatalogError``
        for content that was withdrawn.
        """
        with self.database.session(write=True) as session:
            dataset = _claim(session, namespace, name)
            present = session.scalar(
                select(VersionRow).where(
                    VersionRow.dataset_id == dataset.id, VersionRow.digest == digest
                )
            )
            if present is not None:
                if present.withdrawal:
                    raise CatalogError(
                        f"{namespace}/{name}@v{present.number} has this very content and was"
                        f" withdrawn: {present.withdrawal.reason}"
                    )
                return _versions(session, [present])[0]
            number = dataset.last_number + 1
            row = VersionRow(
                dataset=dataset,
                number=number,
                digest=digest,
                created_at=_now(),
                summary=dict(summary),
                files=[FileRow(path=f.path, bytes=f.bytes, sha256=f.sha256) for f in files(number)],
            )
            session.add(row)
            dataset.last_number = dataset.newest_number = number
            dataset.head_sequence += 1
            session.flush()
            return _versions(session, [row])[0]

    def withdraw(self, namespace: str, name: str, number: int, reason: str) -> Version:
        """Withdraws a version for good, or returns it where it was withdrawn already.

        Raises ``CatalogError`` where there is no such version, or no reason that people can read.
        """
        reason = " ".join(reason.split())
        if not reason or len(reason) > MAX_REASON or not reason.isprintable():
            raise CatalogError(f"a reason has 1 to {MAX_REASON} printable characters")
        with self.database.session(write=True) as session:
            dataset = session.scalar(_named(namespace, name).with_for_update())
            row = session.scalar(
                _of(select(VersionRow), namespace, name).where(VersionRow.number == number)
            )
            if dataset is None or row is None:
                raise CatalogError(f"there is no version {namespace}/{name}@v{number}")
            if row.withdrawal is None:
                row.withdrawal = WithdrawalRow(withdrawn_at=_now(), reason=reason)
                session.flush()
                dataset.newest_number = session.scalar(
                    select(func.max(VersionRow.number))
                    .outerjoin(VersionRow.withdrawal)
                    .where(VersionRow.dataset_id == dataset.id, WithdrawalRow.version_id.is_(None))
                )
                dataset.head_sequence += 1
            return _versions(session, [row])[0]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _text(asked: str) -> str:
    """What is looked for, without the NUL that PostgreSQL takes in no text: it is in no name."""
    return asked.replace("\0", "\ufffd")


def _named(namespace: str, name: str) -> Select[DatasetRow]:
    return select(DatasetRow).where(
        DatasetRow.namespace == _text(namespace), DatasetRow.name == _text(name)
    )


def _of(query: Select[Any], namespace: str, name: str) -> Select[Any]:
    """A query of versions, of one dataset's alone."""
    return query.join(VersionRow.dataset).where(
        DatasetRow.namespace == _text(namespace), DatasetRow.name == _text(name)
    )


def _shown(visible_to: Collection[str] | None) -> ColumnElement[bool]:
    if visible_to is None:
        return true()
    full_name = DatasetRow.namespace + "/" + DatasetRow.name
    named = full_name.in_(sorted(visible_to)) if visible_to else false()
    return (DatasetRow.visibility != "private") | named


def _matches(text: str) -> ColumnElement[bool]:
    """Of a dataset joined to its newest version: whether name or task has ``text`` in it."""
    text = _text(text)
    full_name = DatasetRow.namespace + "/" + DatasetRow.name
    task: ColumnElement[str] = VersionRow.summary["task"].as_string()
    return full_name.icontains(text, autoescape=True) | task.icontains(text, autoescape=True)


def _claim(session: Session, namespace: str, name: str) -> DatasetRow:
    """The dataset's row, made where it is missing, and nobody else's until the transaction ends."""
    postgres = session.get_bind().dialect.name == "postgresql"
    values = {"namespace": namespace, "name": name, "last_number": 0}
    into = (postgresql.insert if postgres else sqlite.insert)(DatasetRow).values(values)
    session.execute(into.on_conflict_do_nothing(index_elements=["namespace", "name"]))
    return session.scalars(_named(namespace, name).with_for_update()).one()


def _dataset(row: DatasetRow) -> Dataset:
    return Dataset(
        namespace=row.namespace,
        name=row.name,
        visibility=row.visibility,  # type: ignore[arg-type]  # the table's CHECK
        agreement_version=row.agreement_version,
        agreement_text=row.agreement_text,
        last_number=row.last_number,
    )


def _withdrawal(row: VersionRow) -> Withdrawal | None:
    if row.withdrawal is None:
        return None
    return Withdrawal(at=row.withdrawal.withdrawn_at, reason=row.withdrawal.reason)


def _entry(row: VersionRow) -> VersionEntry:
    return VersionEntry(
        number=row.number,
        digest=row.digest,
        created_at=row.created_at,
        withdrawn=_withdrawal(row),
    )


def _versions(session: Session, rows: Sequence[VersionRow]) -> list[Version]:
    """The versions with their files: one query, however many they are."""
    query = select(FileRow.version_id, FileRow.path, FileRow.bytes, FileRow.sha256).where(
        FileRow.version_id.in_([row.id for row in rows])
    )
    files: dict[int, list[StoredFile]] = {row.id: [] for row in rows}
    # Plain rows, not mapped ones: a page has hundreds of files.
    for version_id, path, size, sha256 in session.execute(query):
        files[version_id].append(StoredFile(path=path, bytes=size, sha256=sha256))
    return [
        Version(
            dataset=_dataset(row.dataset),
            number=row.number,
            digest=row.digest,
            created_at=row.created_at,
            summary=row.summary,
            files=tuple(sorted(files[row.id], key=lambda file: file.path)),
            withdrawn=_withdrawal(row),
        )
        for row in rows
    ]
