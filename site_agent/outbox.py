"""Answers that left the site: written before they are sent, and never computed twice.

One file an answer, ``<contract digest>/<round>.safetensors``, of a secure sum's later attempts
``<round>-<attempt>.safetensors``: the exact bytes of the summary, whose header names the request it
answers. What a site keeps of its attempts lies beside it (``membership.py``).
"""

from dataclasses import dataclass
from pathlib import Path

from shared.durable import write_durably

_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Outbox:
    """A folder of answers by contract digest, round and attempt."""

    folder: Path

    def stored(self, *, contract_digest: str, round: int, attempt: int = 1) -> bytes | None:
        """The answer given under this contract, round and attempt, or None."""
        try:
            return self._path(contract_digest, round, attempt).read_bytes()
        except FileNotFoundError:
            return None

    def store(self, answer: bytes, *, contract_digest: str, round: int, attempt: int = 1) -> None:
        """Keeps ``answer`` durably: it is whole on the disk, or absent, after any crash."""
        write_durably(self._path(contract_digest, round, attempt), answer)

    def answered(self) -> int:
        """How many answers are kept."""
        return sum(1 for _ in self.folder.glob(f"*/*{_SUFFIX}"))

    def _path(self, contract_digest: str, round: int, attempt: int) -> Path:
        later = f"-{attempt}" if attempt > 1 else ""
        return self.folder / contract_digest / f"{round:05d}{later}{_SUFFIX}"
