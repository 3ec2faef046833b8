"""Answers that left the site: written before they are sent, and never computed twice.

One file an answer, ``<contract digest>/<round>.safetensors``: the exact bytes of the summary, whose
header names the request it answers.
"""

from dataclasses import dataclass
from pathlib import Path

from shared.durable import write_durably

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
