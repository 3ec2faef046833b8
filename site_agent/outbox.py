"""Answers that left the site: written before they are sent, and never computed twice.

One file an answer, ``<contract digest>/<round>.safetensors``, of a secure sum's later attempts
``<round>-<attempt>.safetensors``: the exact bytes of the summary, whose header names the request it
answers. Beside it lies what is known of it (``<round>.entry.json``, ``<round>-<attempt>...``), what
a site keeps of its attempts (``membership.py``), and what a descent was asked at
(``<round>.weights``, little-endian float32): the next weights are held against it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import AwareDatetime, Field, ValidationError

from shared.contract import Granularity, Hex32, Kind
from shared.durable import write_durably
from shared.frozen import Frozen, Slug, canonical_json
from shared.judging import EvaluationHeader, VetoHeader
from shared.messages import Attempt, FloatArray, MessageError, SummaryHeader, decode, payload_digest

Judgement = Literal["evaluation", "veto"]
"""Answers of another kind: figures of networks or images, after a contract's last round."""

_SUFFIX = ".safetensors"
_ENTRY = ".entry.json"
_WEIGHTS = ".weights"


class OutboxError(RuntimeError):
    """An answer that cannot be told of; the text names the file."""


class Entry(Frozen):
    """What is known of an answer; None where an earlier version did not keep it."""

    contract: Hex32 = Field(description="the contract's digest")
    name: Slug | None = Field(None, description="the contract's name")
    round: int = Field(ge=1)
    attempt: Attempt = 1
    answered: AwareDatetime
    kind: Kind | Judgement
    granularity: Granularity | None = None
    noised: bool | None = None
    shape: tuple[int, ...] = Field(description="of the array as it left, or of the figures")
    gradients: int = Field(ge=0, description="gradients or descents in it")
    norm: float | None = Field(None, ge=0, description="L2; none under masks, which hide it")
    seconds: float = Field(ge=0, description="time the worker computed")
    bytes: int = Field(ge=0)
    digest: Hex32 = Field(description="SHA-256 of the file")


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

    def store(
        self,
        answer: bytes,
        *,
        contract_digest: str,
        round: int,
        attempt: int = 1,
        entry: Entry | None = None,
    ) -> None:
        """Keeps ``answer`` durably: it is whole on the disk, or absent, after any crash.

        What is known of it is there before it.
        """
        path = self._path(contract_digest, round, attempt)
        if entry is not None:
            content = canonical_json(entry.model_dump(mode="json")) + b"\n"
            write_durably(path.with_name(path.stem + _ENTRY), content)
        write_durably(path, answer)

    def answered(self, *, since: float = 0.0) -> int:
        """How many answers are kept that were given at or after ``since``, seconds of the epoch."""
        answers = self.folder.glob(f"*/*{_SUFFIX}")
        return sum(1 for answer in answers if answer.stat().st_mtime >= since)

    def entries(self, *, since: float = 0.0) -> Iterator[Entry]:
        """What is known of the answers given at or after ``since``, in no order.

        Raises ``OutboxError`` where nothing is known of one.
        """
        for answer in self.folder.glob(f"*/*{_SUFFIX}"):
            if answer.stat().st_mtime >= since:
                yield _entry_of(answer)

    def given(self) -> Iterator[tuple[str, int, int]]:
        """Contract digest, round and attempt of each answer that is kept, in no order."""
        for answer in self.folder.glob(f"*/*{_SUFFIX}"):
            round, _, attempt = answer.stem.partition("-")
            yield answer.parent.name, int(round), int(attempt or 1)

    def path(self, entry: Entry) -> Path:
        """The file of an answer."""
        return self._path(entry.contract, entry.round, entry.attempt)

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


def _entry_of(path: Path) -> Entry:
    try:
        return Entry.model_validate_json(path.with_name(path.stem + _ENTRY).read_bytes())
    except (FileNotFoundError, ValidationError):
        # An earlier version's, or damaged: the answer itself says the rest.
        return _described(path)


def _described(path: Path) -> Entry:
    """What an answer itself tells. Raises ``OutboxError`` where it is damaged."""
    payload = path.read_bytes()
    try:
        message = decode(payload)
    except MessageError as error:
        raise OutboxError(f"{path}: is damaged ({error}); put a copy from a backup there") from None
    header = message.header
    if isinstance(header, EvaluationHeader | VetoHeader):
        return Entry(
            contract=header.contract_digest,
            round=int(path.stem),
            answered=datetime.fromtimestamp(path.stat().st_mtime, UTC),
            kind=header.type,
            noised=False,
            shape=(len(header.psnr_db) if isinstance(header, EvaluationHeader) else 0,),
            gradients=0,
            seconds=header.seconds,
            bytes=len(payload),
            digest=payload_digest(payload),
        )
    if not isinstance(header, SummaryHeader) or len(message.arrays) != 1:
        raise OutboxError(f"{path}: is no summary")
    ((name, array),) = message.arrays.items()
    return Entry(
        contract=header.contract_digest,
        round=header.round,
        attempt=header.attempt,
        answered=datetime.fromtimestamp(path.stat().st_mtime, UTC),
        kind=header.kind,
        granularity="federation" if name == "masked" else None,
        shape=array.shape,
        # Of a masked one, whose rows do not show, at least one.
        gradients=1 if name == "masked" else int(array.size // array.shape[-1]),
        norm=None if name == "masked" else float(np.linalg.norm(array)),
        seconds=header.seconds,
        bytes=len(payload),
        digest=payload_digest(payload),
    )
