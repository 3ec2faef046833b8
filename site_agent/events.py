"""What the site's processes say of themselves: one line an event, of an enumerated kind.

The lines are for the hospital's log collector. They hold counts, codes and words of this code's
own: an exception's text, a path, and anything that came out of an image or a message have no way
into them. What is said of an incident in words is in ``logs/`` under its id (``incidents.py``).
"""

import hashlib
import hmac
import secrets
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, TextIO

from shared.durable import write_durably
from shared.log_lines import LogFormat, Value, line_writer, plain

SALT_FILE = Path("keys", "log.salt")


class Event(StrEnum):
    """All that is ever said."""

    WORKER_READY = "worker ready"
    WORKER_STOPPED = "worker stopped"
    COHORT_LOST = "cohort lost"
    ANSWERED = "request answered"
    REPEATED = "answer repeated"
    CHARGED = "budget charged"
    REFUSED = "request refused"
    CONNECTION_BROKE = "connection broke"
    SUPERNODE_READY = "supernode ready"
    NOT_CONNECTED = "not connected"
    METRICS_SERVED = "metrics served"
    PART_ENDED = "part ended"
    IMPORTER_READY = "importer ready"
    SENDER_REFUSED = "sender refused"
    OBJECTS_RECEIVED = "objects received"
    PULL_ENDED = "pull ended"


FIELDS: dict[Event, tuple[str, ...]] = {
    Event.WORKER_READY: ("site", "patients", "device"),
    Event.WORKER_STOPPED: (),
    Event.COHORT_LOST: (),
    Event.ANSWERED: ("contract", "round", "kind", "bytes", "seconds"),
    Event.REPEATED: ("contract", "round"),
    Event.CHARGED: ("contract", "round", "attempt", "noise", "sampling"),
    Event.REFUSED: ("code", "incident"),
    Event.CONNECTION_BROKE: (),
    Event.SUPERNODE_READY: ("site", "aggregator"),
    Event.NOT_CONNECTED: ("reason", "hint"),
    Event.METRICS_SERVED: ("port",),
    Event.PART_ENDED: ("part", "code", "again_s"),
    Event.IMPORTER_READY: ("ae_title", "port"),
    Event.SENDER_REFUSED: ("sender", "hint"),
    Event.OBJECTS_RECEIVED: ("sender", "stored", "already_there", "refused", "failed"),
    Event.PULL_ENDED: ("fetched", "missing"),
}
"""What an event tells beside its time. Other fields are an error of ours."""


class Note(Protocol):
    """Says an event; :func:`note`, or a test's."""

    def __call__(self, event: Event, /, **fields: Value) -> None:  # noqa: D102
        ...


class Tally:
    """How often what was said, since the process began: what its metrics are made of."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.events: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.answer_bytes = 0
        self.answer_seconds = 0.0

    def count(self, event: Event, fields: dict[str, Value]) -> None:
        """Takes an event into account."""
        with self._lock:
            self.events[event.value] += 1
            if event is Event.REFUSED:
                self.refusals[str(fields["code"])] += 1
            if event is Event.ANSWERED:
                self.answer_bytes += int(fields["bytes"] or 0)
                self.answer_seconds += float(fields["seconds"] or 0.0)

    def read(self) -> dict[str, Any]:
        """All of it, at one instant."""
        with self._lock:
            return {
                "events": dict(self.events),
                "refusals": dict(self.refusals),
                "answer_bytes": self.answer_bytes,
                "answer_seconds": self.answer_seconds,
            }


TALLY = Tally()
_write: Callable[..., Any] | None = None


def begin(part: str, form: LogFormat, *, stream: TextIO | None = None) -> LogFormat:
    """From now on events go to ``stream`` (stdout), with the ``part`` of the site that speaks.

    Gives the format, which is not ``auto`` any more. Before the first call nothing is written.
    """
    global _write
    _write, form = line_writer(part, form, stream=stream)
    return form


def note(event: Event, /, **fields: Value) -> None:
    """Counts an event, and writes its line. Raises ``ValueError`` on fields it does not have.

    A log that cannot be written stops nothing.
    """
    unknown = set(fields) - set(FIELDS[event])
    if unknown:
        raise ValueError(f"{event.name} has no {', '.join(sorted(unknown))}")
    TALLY.count(event, fields)
    if _write is not None:
        with suppress(OSError, ValueError):  # a full disk, a reader that has gone
            _write(event.value, **{name: plain(value) for name, value in fields.items()})


def log_salt(home: Path) -> bytes:
    """The 32 bytes under which identifiers are hashed; made at first use, mode 0600.

    Another one is made in place of a damaged one: hashes before and after then do not compare.
    """
    path = home / SALT_FILE
    with suppress(FileNotFoundError):
        salt = path.read_bytes()
        if len(salt) == 32:
            return salt
    salt = secrets.token_bytes(32)
    write_durably(path, salt)
    return salt


def hashed(identifier: str, *, salt: bytes) -> str:
    """What stands in a line in place of an identifier: 16 hex digits, another at each site."""
    return hmac.new(salt, b"fedstill log\0" + identifier.encode(), hashlib.sha256).hexdigest()[:16]
