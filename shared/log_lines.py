"""Lines for a log collector: one an event, JSON or text, of words and counts alone.

Each party has its own enumerated events (``site_agent/events.py``, ``aggregator/events.py``) and
writes them by :func:`line_writer`. The last guard, :func:`plain`, lets nothing through that no
event of ours would hold: no path, no exception's text.
"""

import re
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Any, TextIO

Value = str | int | float | bool | None


class LogFormat(StrEnum):
    """How lines are written."""

    AUTO = "auto"
    """JSON, unless to a terminal."""
    JSON = "json"
    TEXT = "text"


def settled(form: LogFormat, stream: TextIO | None = None) -> LogFormat:
    """The format, which is not ``auto`` any more."""
    if form is not LogFormat.AUTO:
        return form
    return LogFormat.TEXT if (stream or sys.stdout).isatty() else LogFormat.JSON


def line_writer(
    part: str, form: LogFormat, *, stream: TextIO | None = None
) -> tuple[Callable[..., Any], LogFormat]:
    """Writes an event and its fields to ``stream`` (stdout), with the ``part`` that speaks."""
    import structlog  # commands that write no log do without it

    stream = stream or sys.stdout
    form = settled(form, stream)
    if form is LogFormat.JSON:
        shown: list[Any] = [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ]
    else:
        shown = [structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)]
    logger = structlog.wrap_logger(structlog.PrintLogger(stream), processors=shown, part=part)
    return logger.msg, form


# No slash, so that no path is let through, and nothing longer than a hint.
_PLAIN = re.compile(r"[A-Za-z0-9 .,:;()`'_+-]{0,240}")


def plain(value: Value) -> Value:
    """The value, or ``withheld`` in place of a text that no event of ours would hold."""
    return "withheld" if isinstance(value, str) and not _PLAIN.fullmatch(value) else value
