"""The audit log: what the site did, line by line, each line chained to the one before by its hash.

``audit/log.jsonl`` holds one canonical JSON object a line: ``sequence`` from 1 on, ``time``,
``event``, its ``fields``, a ``salt``, and ``previous``, the SHA-256 of the line before (64 zeros at
the beginning). The hash of the last line is the chain's *head*. It travels to the aggregator with
every answer and covers that answer's own line: whoever changes, drops, reorders or cuts off lines
afterwards cannot make a chain that holds this head. The salt is random, so that a head tells
nothing of what the lines say, guessed or not.

``audit/head.json`` is the same head, kept here. How the log stays at least as long as the truth:

1. a line is on the disk before ``head.json`` names it, and that before what the line speaks of
   goes on; a crash in between leaves a line more, never one less;
2. a last line that a crash left torn was not acknowledged; the next writer cuts it off;
3. a log that does not hold the line that ``head.json`` names stops all answers until somebody
   looks: it is never begun anew beside what is left of it.
"""

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import AwareDatetime, Field, ValidationError

from shared.contract import Hex32
from shared.durable import sync_folder, write_durably
from shared.frozen import Frozen, canonical_json

Event = Literal[
    "started", "stopped", "cohort", "policy", "charged", "answered", "repeated", "refused",
    "key-offered", "opened", "dry-run", "judged",
]  # fmt: skip
GENESIS = "0" * 64
"""What the first line has in place of a hash."""
MAX_LINE_BYTES = 65_536
_BLOCK_BYTES = 4_096


class AuditError(RuntimeError):
    """A log that cannot be trusted; the text names the file and the fix."""


class Head(Frozen):
    """A place in the chain: how many lines there are, and the hash of the last one."""

    sequence: int = Field(ge=0)
    head: Hex32


class Line(Frozen):
    """What one line says."""

    sequence: int = Field(ge=1)
    time: AwareDatetime
    event: Event
    fields: dict[str, str | int | float | bool | None]
    salt: str = Field(pattern=r"^[0-9a-f]{32}$")
    previous: Hex32


@dataclass(frozen=True)
class Verdict:
    """What verifying has found."""

    lines: int
    """Whole lines, sound or not."""
    head: str
    """Hash of the last of them."""
    faults: tuple[str, ...]
    torn_bytes: int
    """Of a last line that a crash cut off before it was acknowledged: not a fault."""


@dataclass(frozen=True)
class AuditLog:
    """A folder with the log and its head, each readable by its owner alone."""

    folder: Path

    @property
    def path(self) -> Path:
        """The log."""
        return self.folder / "log.jsonl"

    @property
    def head_path(self) -> Path:
        """The last line that was acknowledged."""
        return self.folder / "head.json"

    def append(self, event: Event, **fields: str | int | float | bool | None) -> str:
        """Adds a line; gives the new head. It is on the disk when this returns.

        Raises ``AuditError`` where the log does not hold what it held.
        """
        with self._open() as log:
            last = self._mended(log)
            line = Line(
                sequence=last.sequence + 1,
                time=datetime.now(UTC),
                event=event,
                fields=fields,
                salt=secrets.token_hex(16),
                previous=last.head,
            )
            written = canonical_json(line.model_dump(mode="json"))
            log.write(written + b"\n")
            log.flush()
            os.fsync(log.fileno())
            head = Head(sequence=line.sequence, head=_hash(written))
            self._keep(head)
            return head.head

    def lines(self) -> Iterator[Line]:
        """All whole lines, oldest first. Raises ``AuditError`` at one that says nothing."""
        for number, line in enumerate(self._whole_lines()[0], 1):
            try:
                yield Line.model_validate_json(line)
            except ValidationError:
                raise AuditError(f"{self.path}: line {number} is no line of this log") from None

    def verify(self, head: str | None = None) -> Verdict:
        """Checks every line, ``head.json``, and that the chain holds ``head``, if given."""
        lines, torn_bytes = self._whole_lines()
        hashes, faults, previous = [GENESIS], list[str](), GENESIS
        for number, line in enumerate(lines, 1):
            fault = _fault(line, number=number, previous=previous)
            if fault is not None:
                faults.append(f"line {number}: {fault}")
            previous = _hash(line)
            hashes.append(previous)
        kept = None
        try:
            kept = self._kept()
        except AuditError as error:
            faults.append(str(error))
        else:
            if kept is None and len(lines) > 1:
                faults.append(f"{self.head_path.name} is missing")
        if kept is not None and hashes[kept.sequence : kept.sequence + 1] != [kept.head]:
            faults.append(
                f"{self.head_path.name} names line {kept.sequence}, which "
                + ("is not there: cut off" if kept.sequence >= len(hashes) else "is another one")
            )
        if head is not None and head not in hashes[1:]:
            faults.append(f"no line has the hash {head[:16]}…: the log is not the one it was of")
        return Verdict(len(lines), hashes[-1], tuple(faults), torn_bytes)

    def _mended(self, log: BinaryIO) -> Head:
        """The last acknowledged place, or one line beyond it; what is torn after it is cut off."""
        end, last = _last_line(log)
        kept = self._kept()
        if last is None:
            found = Head(sequence=0, head=GENESIS)
        else:
            try:
                line = Line.model_validate_json(last)
            except ValidationError:
                raise self._broken("its last line is none") from None
            found = Head(sequence=line.sequence, head=_hash(last))
            before = Head(sequence=line.sequence - 1, head=line.previous)
        first = Head(sequence=0, head=GENESIS)
        # A crash before head.json was written: the line is there, and names the head before it.
        if found != (kept or first) and (last is None or before != (kept or first)):
            raise self._broken(f"it does not end with the line that {self.head_path.name} names")
        if found != (kept or first):
            self._keep(found)
        log.seek(0, os.SEEK_END)
        if log.tell() != end:
            log.truncate(end)
            log.seek(end)
        return found

    def _broken(self, what: str) -> AuditError:
        return AuditError(
            f"{self.path}: {what}. `site-agent audit verify` says what is missing: find out who "
            f"changed it, then move {self.folder.name}/ away, keep it, and start the worker again"
        )

    def _kept(self) -> Head | None:
        try:
            return Head.model_validate_json(self.head_path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            raise AuditError(f"{self.head_path}: is damaged") from None

    def _keep(self, head: Head) -> None:
        write_durably(self.head_path, canonical_json(head.model_dump(mode="json")) + b"\n")

    def _whole_lines(self) -> tuple[list[bytes], int]:
        """The lines that end, and how many bytes come after the last of them."""
        try:
            *lines, torn = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return [], 0
        return lines, len(torn)

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        """The log, to be read and added to by nobody else meanwhile."""
        if not self.folder.is_dir():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_folder(self.folder.parent)
        fresh = not self.path.exists()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "r+b") as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            if fresh:
                sync_folder(self.folder)
            yield log


def _fault(line: bytes, *, number: int, previous: str) -> str | None:
    try:
        said = Line.model_validate_json(line)
        written = canonical_json(json.loads(line))
    except (ValueError, RecursionError):
        return "is no line of this log"
    if said.sequence != number:
        return f"has the number {said.sequence}"
    if said.previous != previous:
        return "does not follow the line before it"
    return None if written == line else "is not written as this log is"


def _last_line(log: BinaryIO) -> tuple[int, bytes | None]:
    """Where the last whole line ends, and the line; (0, None) where there is none."""
    size = log.seek(0, os.SEEK_END)
    tail, start = b"", size
    while start and tail.count(b"\n") < 2 and len(tail) <= 2 * MAX_LINE_BYTES:
        step = min(_BLOCK_BYTES, start)
        start -= step
        log.seek(start)
        tail = log.read(step) + tail
    end = tail.rfind(b"\n")
    if end < 0:
        return 0, None
    return start + end + 1, tail[tail.rfind(b"\n", 0, end) + 1 : end]


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
