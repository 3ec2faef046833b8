"""What `aggregator up` says of itself: one line an event, of an enumerated kind.

The lines are for a log collector, and counted for the metrics. They hold names of services and
sites, codes and counts; what went wrong in words is in ``logs/up.log``.
"""

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from typing import Any, TextIO

from shared.log_lines import LogFormat, Value, line_writer, plain


class Event(StrEnum):
    """All that is ever said."""

    READY = "SuperLink ready on loopback"
    EDGE_READY = "edge ready"
    METRICS_SERVED = "metrics served"
    SERVICE_ENDED = "service ended"
    SERVICE_STARTED = "service started again"
    SERVICE_FAILED = "service did not start"
    RUN_GOES_ON = "run goes on"
    VACUUMED = "database vacuumed"
    STOPPED = "aggregator stopped"


FIELDS: dict[Event, tuple[str, ...]] = {
    Event.READY: ("superlink", "api"),
    Event.EDGE_READY: ("port",),
    Event.METRICS_SERVED: ("port",),
    Event.SERVICE_ENDED: ("service", "code", "again_s"),
    Event.SERVICE_STARTED: ("service",),
    Event.SERVICE_FAILED: ("service", "again_s", "hint"),
    Event.RUN_GOES_ON: ("run",),
    Event.VACUUMED: ("bytes_before", "bytes_after"),
    Event.STOPPED: (),
}
"""What an event tells beside its time. Other fields are an error of ours."""

_lock = threading.Lock()
_said: Counter[str] = Counter()
_write: Callable[..., Any] | None = None


def begin(form: LogFormat, *, stream: TextIO | None = None) -> LogFormat:
    """From now on events go to ``stream`` (stdout); gives the format, not ``auto`` any more."""
    global _write
    _write, form = line_writer("aggregator", form, stream=stream)
    return form


def note(event: Event, /, **fields: Value) -> None:
    """Counts an event, and writes its line. Raises ``ValueError`` on fields it does not have.

    A log that cannot be written stops nothing.
    """
    unknown = set(fields) - set(FIELDS[event])
    if unknown:
        raise ValueError(f"{event.name} has no {', '.join(sorted(unknown))}")
    with _lock:
        _said[event.value] += 1
    if _write is not None:
        with suppress(OSError, ValueError):  # a full disk, a reader that has gone
            _write(event.value, **{name: plain(value) for name, value in fields.items()})


def said() -> dict[str, int]:
    """How often what was said since the process began."""
    with _lock:
        return dict(_said)
