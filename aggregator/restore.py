"""`aggregator restore`: a home out of a backup, whole or not at all.

Every byte is held against the manifest before anything is written, and again while it is. The home
is made beside its place, under a hidden name, and gets its own when it is complete.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import inspect

from aggregator import postgresql
from aggregator.archive import (
    MANIFEST,
    PGDUMP,
    SQLITE,
    Advance,
    ArchiveError,
    BackupManifest,
    chunks,
    examine,
    members,
    open_archive,
)
from aggregator.database import Database, DatabaseError, look
from aggregator.home import AggregatorHome, settings_text
from shared.durable import sync_folder

SPARE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Restored:
    """What was made."""

    home: AggregatorHome
    manifest: BackupManifest


def restore(file: Path, root: Path, *, database: str | None, advance: Advance) -> Restored:
    """Makes the home ``root``, which must not exist, or be empty. Raises ``ArchiveError``.

    ``database``: URL of an empty PostgreSQL database, in place of the one in the settings.
    """
    root = root.absolute()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ArchiveError(f"{root} exists and is not empty: restore into a new folder")
    if not root.parent.is_dir():
        raise ArchiveError(f"{root.parent} is no folder: make it first")
    with open_archive(file) as archive, _place(root) as hidden:
        try:
            manifest = examine(archive, advance)
        except ArchiveError as error:
            raise ArchiveError(f"{file}: {error}") from None
        wanted = sum(one.bytes for one in manifest.files)
        if shutil.disk_usage(root.parent).free < wanted + SPARE_BYTES:
            raise ArchiveError(f"{root.parent} has no room for {wanted} bytes")
        _extract(archive, manifest, hidden, advance)
        home = AggregatorHome(hidden)
        _settle(home, manifest, database=database)
        _open_catalog(home, manifest)
        os.sync()
        try:
            hidden.rename(root)
        except OSError as error:
            raise ArchiveError(f"{root}: cannot be made ({error.strerror})") from None
        sync_folder(root.parent)
    return Restored(AggregatorHome(root), manifest)


def _extract(archive: BinaryIO, manifest: BackupManifest, into: Path, advance: Advance) -> None:
    entries = {one.name: one for one in manifest.files}
    total, done = sum(one.bytes for one in manifest.files), 0
    archive.seek(0)
    for member, content in members(archive):
        if member.name == MANIFEST:
            continue
        # It was looked at before; who changes it in between is found here.
        entry, digest, left = entries.pop(member.name, None), hashlib.sha256(), member.size
        if entry is None or entry.bytes != left:
            raise ArchiveError("the archive changed while it was read")
        path = into / member.name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, entry.mode), "wb") as output:
            os.fchmod(output.fileno(), entry.mode)
            for chunk in chunks(content):
                digest.update(chunk)
                output.write(chunk)
                done += len(chunk)
                advance(done, total)
        if digest.hexdigest() != entry.sha256:
            raise ArchiveError("the archive changed while it was read")
    if entries:
        raise ArchiveError("the archive changed while it was read")


def _settle(home: AggregatorHome, manifest: BackupManifest, *, database: str | None) -> None:
    """Settings and folders that fit where the home is now; raises ``ArchiveError``."""
    changes: dict[str, str] = {}
    if database is not None and manifest.catalog != "postgresql":
        raise ArchiveError("--database: the backup's catalog is no PostgreSQL database")
    if database is not None:
        changes["database"] = database
    if not manifest.storage:
        changes["storage"] = ""  # it was a folder, perhaps on another machine: they are here now
    settings = type(home.settings).model_validate({**home.settings.model_dump(), **changes})
    if settings != home.settings:
        home.settings_file.write_text(settings_text(settings), "utf-8")
    for folder in (
        home.tls,
        home.release_key.parent,
        home.flower,
        home.sites,
        home.runs,
        home.logs,
    ):
        folder.mkdir(exist_ok=True, mode=0o700)
    if not manifest.storage:
        (home.root / "blobs").mkdir(exist_ok=True, mode=0o700)


def _open_catalog(home: AggregatorHome, manifest: BackupManifest) -> None:
    """The catalog in its place, and of this version's schema; raises ``ArchiveError``."""
    address: Path | str = AggregatorHome(home.root).catalog
    if manifest.catalog == "none":
        return
    try:
        if manifest.catalog == "postgresql":
            assert isinstance(address, str)
            _require_empty(address)
            postgresql.load(address, source=home.root / PGDUMP)
            (home.root / PGDUMP).unlink()
        elif not (home.root / SQLITE).exists():
            raise ArchiveError(f"it has no {SQLITE}")
        Database(address).close()
    except DatabaseError as error:
        raise ArchiveError(str(error)) from None


def _require_empty(address: str) -> None:
    engine = look(address)
    try:
        with engine.connect() as connection:
            tables = inspect(connection).get_table_names()
    except Exception as error:
        raise ArchiveError(
            f"the catalog's database cannot be reached ({type(error).__name__}): start it, or "
            "name another with --database"
        ) from None
    finally:
        engine.dispose()
    if tables:
        raise ArchiveError(
            f"the catalog's database is not empty ({len(tables)} tables): make an empty one and "
            "name it with --database postgresql://user@host/name"
        )


@contextmanager
def _place(root: Path) -> Iterator[Path]:
    """A hidden folder beside ``root``; what a killed restore left there goes first."""
    hidden = root.with_name(f".{root.name}.restore.part")
    parent = os.open(root.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(parent, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArchiveError(f"another restore writes into {root.parent}") from None
        shutil.rmtree(hidden, ignore_errors=True)
        try:
            hidden.mkdir(mode=0o700)
            yield hidden
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
    finally:
        os.close(parent)
