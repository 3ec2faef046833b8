"""Answers that left the site: written before they are sent, and never computed twice.

One file an answer, ``<contract digest>/<round>.safetensors``: the exact bytes of the summary, whose
header names the request it answers.
"""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Outbox:
    """A folder of answers by contract digest and round."""

    folder: Path

    def stored(self, *, contract_digest: str, round: int) -> bytes | None:
        """The answer given under this contract and round, or None."""
        try:
            return self._path(contract_digest, round).read_bytes()
        except FileNotFoundError:
            return None

    def store(self, answer: bytes, *, contract_digest: str, round: int) -> None:
        """Keeps ``answer`` durably: it is whole on the disk, or absent, after any crash."""
        write_durably(self._path(contract_digest, round), answer)

    def answered(self) -> int:
        """How many answers are kept."""
        return sum(1 for _ in self.folder.glob(f"*/*{_SUFFIX}"))

    def _path(self, contract_digest: str, round: int) -> Path:
        return self.folder / contract_digest / f"{round:05d}{_SUFFIX}"


def write_durably(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replaces ``path`` by ``content``: temporary file, fsync, rename, fsync of the folder.

    Folders that have to be made are private to the owner.
    """
    missing = []
    folder = path.parent
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
