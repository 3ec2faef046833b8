"""The form of a backup: a plain tar whose last member, ``MANIFEST.json``, names all others.

Names are those of the home's files, with ``catalog.sqlite`` (a snapshot) or ``catalog.pgdump`` (of
``pg_dump``, custom form). Nothing is compressed, so nothing can be larger than it looks; an archive
that was cut off has no manifest. :func:`examine` reads all of it and believes none of it.
"""

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import Field, ValidationError

from shared.frozen import Frozen

MANIFEST = "MANIFEST.json"
SQLITE, PGDUMP = "catalog.sqlite", "catalog.pgdump"
FILES = ("aggregator.toml", SQLITE, PGDUMP)
FOLDERS = (
    *("blobs", "coordinators", "edge", "foundations", "heard", "keys", "kits"),
    *("revoked", "runs", "sites", "tls"),
)
MODES = (0o600, 0o644)
MAX_MANIFEST_BYTES = 256 * 2**20
MAX_NAME = 512
CHUNK_BYTES = 2**20

Advance = Callable[[int, int], None]
"""Called with the bytes that are done and those there are."""


class ArchiveError(RuntimeError):
    """A backup that is damaged or no backup, or cannot be made; says what is wrong and the fix."""


class Entry(Frozen):
    """A file of the archive."""

    name: str = Field(max_length=MAX_NAME)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    mode: int


class BackupManifest(Frozen):
    """What a backup holds, and what it does not."""

    form: Literal[1] = 1
    fedstill: str = Field(description="version that made it")
    created: str = Field(description="UTC")
    home: str = Field(description="public address of the aggregator")
    catalog: Literal["sqlite", "postgresql", "none"]
    step: str | None = Field(None, description="of the catalog's schema")
    blobs: int = Field(0, ge=0, description="published files in it")
    storage: str = Field("", description="bucket of the published files; empty: they are here")
    elsewhere: tuple[str, ...] = Field((), description="SHA-256 of the published files in it")
    private_keys: bool = Field(description="whether the keys that sign are in it")
    left_out: tuple[str, ...] = Field((), description="private keys that are not")
    files: tuple[Entry, ...]

    def digest(self) -> str:
        """SHA-256 (hex) of the manifest's bytes: stands for all of the backup."""
        return hashlib.sha256(self.encoded()).hexdigest()

    def encoded(self) -> bytes:
        """The bytes of ``MANIFEST.json``."""
        return self.model_dump_json(indent=1).encode() + b"\n"


def is_allowed(name: str) -> bool:
    """Whether a file of that name may be in a backup, and so be written by a restore."""
    parts = name.split("/")
    plain = all(part and not part.startswith(".") and part.isprintable() for part in parts)
    if not plain or "\\" in name or len(name) > MAX_NAME:
        return False
    return name in FILES if len(parts) == 1 else parts[0] in FOLDERS


def examine(file: BinaryIO, advance: Advance) -> BackupManifest:
    """Reads the whole archive and holds it against its manifest; raises ``ArchiveError``."""
    total = file.seek(0, 2)
    file.seek(0)
    found: dict[str, tuple[int, str, int]] = {}
    manifest: BackupManifest | None = None
    for member, content in members(file):
        if manifest is not None:
            raise ArchiveError(f"{member.name!r} comes after {MANIFEST}: this is no backup of ours")
        if member.name == MANIFEST:
            manifest = _manifest(member, content)
            continue
        if member.name in found:
            raise ArchiveError(f"{member.name!r} is in it twice: this is no backup of ours")
        digest = hashlib.sha256()
        for chunk in chunks(content):
            digest.update(chunk)
            advance(file.tell(), total)
        found[member.name] = member.size, digest.hexdigest(), member.mode
    if manifest is None:
        raise ArchiveError(f"it has no {MANIFEST}: it was cut off, or is no backup of ours")
    told = {one.name: (one.bytes, one.sha256, one.mode) for one in manifest.files}
    if len(told) != len(manifest.files):
        raise ArchiveError(f"{MANIFEST} names a file twice: this is no backup of ours")
    for name in sorted(found.keys() | told.keys()):
        if found.get(name) != told.get(name):
            raise ArchiveError(f"{name!r} is not what {MANIFEST} says: take another backup")
    return manifest


def members(file: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, BinaryIO]]:
    """Each member, checked, with what reads it; raises ``ArchiveError`` on any but a plain file."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if not member.isreg() or member.issparse():
                    raise ArchiveError(f"{member.name[:MAX_NAME]!r} is no plain file")
                if member.name != MANIFEST and not is_allowed(member.name):
                    raise ArchiveError(f"{member.name[:MAX_NAME]!r} has no place in a home")
                if member.name != MANIFEST and member.mode not in MODES:
                    raise ArchiveError(f"{member.name!r} has mode {member.mode:o}")
                content = archive.extractfile(member)
                assert content is not None
                yield member, content  # type: ignore[misc]  # an IO[bytes]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ArchiveError(f"it cannot be read as a tar ({error}): take another backup") from None


def chunks(content: BinaryIO) -> Iterator[bytes]:
    """The bytes of a member, in parts; raises ``ArchiveError`` where there are fewer."""
    while True:
        try:
            chunk = content.read(CHUNK_BYTES)
        except tarfile.TarError:
            raise ArchiveError("it was cut off: take another backup") from None
        if not chunk:
            return
        yield chunk


def _manifest(member: tarfile.TarInfo, content: BinaryIO) -> BackupManifest:
    if member.size > MAX_MANIFEST_BYTES:
        raise ArchiveError(f"{MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        return BackupManifest.model_validate_json(b"".join(chunks(content)))
    except ValidationError:
        raise ArchiveError(
            f"{MANIFEST} is damaged, or of a later fedstill: restore it with that one"
        ) from None


def open_archive(path: Path) -> BinaryIO:
    """The file, to read; raises ``ArchiveError``."""
    try:
        return path.open("rb")
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read ({error.strerror})") from None
