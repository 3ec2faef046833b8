"""Answers that left the site: written before they are sent, and never computed twice.

One file an answer, ``<contract digest>/<round>.safetensors``, of a secure sum's later attempts
``<round>-<attempt>.safetensors``: the exact bytes of the summary, whose header names the request it
answers. What a site keeps of its attempts lies beside it (``membership.py``), and what a descent
was asked at (``<round>.weights``, little-endian float32): the next weights are held against it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.durable import write_durably
from shared.messages import FloatArray

_SUFFIX = ".safetensors"
_WEIGHTS = ".weights"


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

    def answered(self, *, since: float = 0.0) -> int:
        """How many answers are kept that were given at or after ``since``, seconds of the epoch."""
        answers = self.folder.glob(f"*/*{_SUFFIX}")
        return sum(1 for answer in answers if answer.stat().st_mtime >= since)

    def keep_weights(self, weights: FloatArray, *, contract_digest: str, round: int) -> None:
        """Keeps what a descent is asked at, (D,), durably: before its answer is stored."""
        path = self.folder / contract_digest / f"{round:05d}{_WEIGHTS}"
        write_durably(path, np.ascontiguousarray(weights, "<f4").tobytes())

    def last_weights(self, *, contract_digest: str, before: int) -> tuple[int, FloatArray] | None:
        """Round and weights (D,) of the last descent answered under this contract, if any was."""
        for path in sorted((self.folder / contract_digest).glob(f"*{_WEIGHTS}"), reverse=True):
            answers = path.parent.glob(f"{path.stem}*{_SUFFIX}")
            if int(path.stem) < before and any(answers):
                return int(path.stem), np.frombuffer(path.read_bytes(), "<f4")
        return None

    def _path(self, contract_digest: str, round: int, attempt: int) -> Path:
        later = f"-{attempt}" if attempt > 1 else ""
        return self.folder / contract_digest / f"{round:05d}{later}{_SUFFIX}"
