"""`aggregator backup`: a home in one file, while it is in use.

The catalog is copied first, as of one moment, then every file that it names: those never change.
Runs are copied as a crash would leave them; they go on after their last round. Left out are
Flower's database, which `up` makes anew (runs go on without it), logs, and dry runs. The archive
has a name once it is complete and was read back.
"""

import hashlib
import io
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

from sqlalchemy.exc import SQLAlchemyError

from aggregator import postgresql
from aggregator.archive import (
    FOLDERS,
    MANIFEST,
    PGDUMP,
    SQLITE,
    Advance,
    ArchiveError,
    BackupManifest,
    Entry,
    examine,
    is_allowed,
)
from aggregator.database import DatabaseError, condition
from aggregator.home import SETTINGS_FILE, AggregatorHome
from aggregator.published import published_files
from aggregator.publisher_keys import PublisherKeys
from aggregator.store import BlobStore
from shared.durable import sync_folder

KEY_FOLDERS = ("coordinators", "keys", "tls")
SPARE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Backup:
    """What was written."""

    file: Path
    bytes: int
    manifest: BackupManifest


@dataclass
class _Writer:
    """Adds files to the archive, and keeps what the manifest says of them."""

    archive: tarfile.TarFile
    advance: Advance
    total: int
    entries: list[Entry]
    done: int = 0

    def add(self, name: str, source: Path, *, sha256: str | None = None) -> None:
        """Adds a file as it is at this moment; one that is gone is left out.

        Raises ``ArchiveError`` where it has not the ``sha256`` that it must have.
        """
        try:
            file = source.open("rb")
        except FileNotFoundError:
            if sha256 is None:
                return
            raise ArchiveError(f"a published file is missing ({name}): see `doctor`") from None
        with file:
            status = os.fstat(file.fileno())
            public = status.st_mode & 0o044 and not _is_private(name)
            info = tarfile.TarInfo(name)
            info.size, info.mtime = status.st_size, int(status.st_mtime)
            info.mode = 0o644 if public else 0o600
            hashed = _Hashed(file, self)
            self.archive.addfile(info, hashed)  # type: ignore[arg-type]  # it is only read from
        found = hashed.digest.hexdigest()
        if sha256 is not None and found != sha256:
            raise ArchiveError(f"a published file has changed ({name}): see `doctor --deep`")
        self.entries.append(Entry(name=name, bytes=info.size, sha256=found, mode=info.mode))


class _Hashed:
    """Reads a file for the archive, hashing on the way."""

    def __init__(self, file: BinaryIO, writer: _Writer) -> None:
        self._file, self._writer = file, writer
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        content = self._file.read(size)
        self.digest.update(content)
        self._writer.done += len(content)
        self._writer.advance(self._writer.done, self._writer.total)
        return content


def back_up(home: AggregatorHome, file: Path, *, with_keys: bool, advance: Advance) -> Backup:
    """Writes ``file`` (mode 0600), which must not exist yet. Raises ``ArchiveError``, ``OSError``.

    ``advance`` is told how many bytes are written, then how many are read back.
    """
    file = file.absolute()
    if file.exists():
        raise ArchiveError(f"{file} exists: choose another name")
    if not file.parent.is_dir():
        raise ArchiveError(f"{file.parent} is no folder: make it first")
    snapshot = file.with_name(f".{file.name}.catalog.part")
    try:
        manifest, published = _catalog(home, snapshot)
        sources = list(_sources(home, with_keys=with_keys))
        if snapshot.exists():
            sources.insert(0, (PGDUMP if home.settings.database else SQLITE, snapshot))
        sizes = [_size(path) for _, path in sources]
        in_bucket = bool(manifest.storage)
        total = sum(sizes) + (0 if in_bucket else sum(published.values()))
        if shutil.disk_usage(file.parent).free < total + SPARE_BYTES:
            raise ArchiveError(f"{file.parent} has no room for {total} bytes")
        with _nameless(file) as output:
            with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as archive:
                writer = _Writer(archive, advance, total, [])
                _add_all(home, writer, sources)
                if not in_bucket:
                    store = BlobStore(home.blobs)
                    for sha256 in published:
                        path = store.path(sha256)
                        assert path is not None
                        writer.add(f"blobs/{sha256[:2]}/{sha256}", path, sha256=sha256)
                manifest = manifest.model_copy(
                    update={
                        "files": tuple(writer.entries),
                        "private_keys": with_keys,
                        "left_out": () if with_keys else tuple(_private_names(home)),
                    }
                )
                content = manifest.encoded()
                info = tarfile.TarInfo(MANIFEST)
                info.size, info.mode = len(content), 0o600
                archive.addfile(info, io.BytesIO(content))
            output.flush()
            os.fsync(output.fileno())
            examine(output, advance)
            size = output.seek(0, 2)
        return Backup(file, size, manifest)
    finally:
        snapshot.unlink(missing_ok=True)


def _add_all(home: AggregatorHome, writer: _Writer, sources: list[tuple[str, Path]]) -> None:
    keys = PublisherKeys(home.release_key.parent)
    # Keys and the lists that name them belong together: nobody rotates them meanwhile.
    with keys.held() if keys.folder.is_dir() else nullcontext():
        for name, path in sources:
            if name.startswith("keys/"):
                writer.add(name, path)
    for name, path in sources:
        if not name.startswith("keys/"):
            writer.add(name, path)


def _catalog(home: AggregatorHome, snapshot: Path) -> tuple[BackupManifest, dict[str, int]]:
    """Copies the catalog to ``snapshot``; gives what is known so far, and its files' sizes."""
    snapshot.unlink(missing_ok=True)
    manifest = BackupManifest(
        fedstill=version("fedstill"),
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        home=home.settings.public_address,
        catalog="none",
        private_keys=False,
        files=(),
    )
    address = home.catalog
    if isinstance(address, Path) and not address.exists():
        return manifest, {}
    try:
        with os.fdopen(os.open(snapshot, os.O_WRONLY | os.O_CREAT, 0o600), "wb"):
            pass
        if isinstance(address, Path):
            _copy_sqlite(address, snapshot)
            seen = condition(snapshot)
            published = published_files(snapshot)
        else:
            postgresql.dump(address, into=snapshot)
            seen = condition(address)
            published = published_files(address)  # of later; nothing is ever taken away
    except (DatabaseError, SQLAlchemyError, sqlite3.Error) as error:
        raise ArchiveError(f"the catalog cannot be copied ({error}): see `doctor`") from None
    if seen.problems:
        raise ArchiveError(f"the catalog is damaged ({seen.problems[0]}): restore an older backup")
    bucket = BlobStore(home.blobs).folder is None
    return manifest.model_copy(
        update={
            "catalog": "sqlite" if isinstance(address, Path) else "postgresql",
            "step": seen.step,
            "blobs": 0 if bucket else len(published),
            "storage": str(home.blobs) if bucket else "",
            "elsewhere": tuple(sorted(published)) if bucket else (),
        }
    ), dict(sorted(published.items()))


def _copy_sqlite(address: Path, snapshot: Path) -> None:
    """SQLite's online backup: what is committed at one moment, whoever writes meanwhile."""
    source = sqlite3.connect(address, timeout=30)
    target = sqlite3.connect(snapshot)
    try:
        source.backup(target)
        # Else it cannot be opened in a folder that cannot be written to.
        target.execute("PRAGMA journal_mode=DELETE")
    finally:
        target.close()
        source.close()


def _sources(home: AggregatorHome, *, with_keys: bool) -> Iterator[tuple[str, Path]]:
    """Name and place of each file of the home to copy, but for catalog and blobs."""
    yield SETTINGS_FILE, home.settings_file
    for folder in FOLDERS:
        if folder == "blobs":
            continue
        for path in sorted((home.root / folder).rglob("*")):
            name = path.relative_to(home.root).as_posix()
            if _is_passing(name) or path.is_symlink() or not path.is_file() or not is_allowed(name):
                continue
            if with_keys or not _is_private(name):
                yield name, path


def _is_passing(name: str) -> bool:
    """Whether it means nothing elsewhere, or is made anew: locks, dry runs, what nginx is told."""
    own = name.startswith("edge/") and not name.startswith(("edge/enabled/", "edge/http/"))
    return own or name.endswith((".part", "lock")) or name.startswith("runs/dry-")


def _is_private(name: str) -> bool:
    return name.startswith(tuple(f"{one}/" for one in KEY_FOLDERS)) and name.endswith(".key")


def _private_names(home: AggregatorHome) -> list[str]:
    found = (path for folder in KEY_FOLDERS for path in (home.root / folder).glob("[!.]*.key"))
    return sorted(path.relative_to(home.root).as_posix() for path in found)


@contextmanager
def _nameless(file: Path) -> Iterator[BinaryIO]:
    """A file without a name, which gets it at the end: one that is killed leaves nothing.

    Where the file system knows no such files, a hidden one, which the next backup of that name
    takes for its own.
    """
    try:
        descriptor = os.open(file.parent, os.O_TMPFILE | os.O_RDWR, 0o600)
        hidden = None
    except OSError:
        hidden = file.with_name(f".{file.name}.part")
        hidden.unlink(missing_ok=True)
        descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w+b") as output:
            yield output
            try:
                if hidden is not None:
                    os.link(hidden, file)
                else:
                    _name(output.fileno(), file)
            except FileExistsError:
                raise ArchiveError(f"{file} exists: choose another name") from None
            sync_folder(file.parent)
    finally:
        if hidden is not None:
            hidden.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # a run goes on meanwhile
        return 0


def _name(descriptor: int, file: Path) -> None:
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Only with a folder Python asks the system to follow the link to what has no name.
        os.link(f"/proc/self/fd/{descriptor}", file, src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)
