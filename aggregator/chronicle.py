"""What a run's journal has told up to now, read on from where the last look ended.

``events.jsonl`` only grows, so who looks again reads what is new. Of the lines, those that say
what sites do or that a round has ended are decoded, and the last: a journal of 100,000 lines is
taken in in a fraction of a second, and again in no time.
"""

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

EVENTS = "events.jsonl"
MOST_READ_BYTES = 4 * 1024 * 1024
"""At a time; a line is far shorter."""
MOST_KEPT = 256
"""Runs whose chronicle is kept in memory."""

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Chronicle:
    """The journal so far."""

    last: Event = field(default_factory=dict)
    first: float | None = None
    """When it began, seconds since 1970."""
    sites: Mapping[str, Event] = field(default_factory=dict)
    """What was last said of each site, ``told`` and in that state ``since``: seconds since 1970."""
    rounds: Mapping[int, Event] = field(default_factory=dict)
    """What ended each round, the event whole; one that was asked again counts as it ended last."""
    bytes: int = 0
    """Of the journal's whole lines: where the next begins."""


class _Reader:
    """Takes in what is new of one journal; one thread at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._file: tuple[int, int] | None = None
        self._found = Chronicle()

    def read_on(self, path: Path) -> Chronicle:
        try:
            with path.open("rb") as file:
                about = os.fstat(file.fileno())
                if self._file != (about.st_dev, about.st_ino) or about.st_size < self._found.bytes:
                    self._file, self._found = (about.st_dev, about.st_ino), Chronicle()
                if about.st_size > self._found.bytes:
                    file.seek(self._found.bytes)
                    while content := file.read(MOST_READ_BYTES):
                        whole = content[: content.rfind(b"\n") + 1]
                        if not whole:
                            break
                        self._found = _continued(self._found, whole)
                        file.seek(self._found.bytes)
        except FileNotFoundError:
            self._file, self._found = None, Chronicle()
        return self._found


def _continued(found: Chronicle, whole: bytes) -> Chronicle:
    """``found`` and the lines of ``whole``."""
    lines = whole.splitlines()
    sites, rounds, first, last = dict(found.sites), dict(found.rounds), found.first, found.last
    # The last line that can be read: a killed writer leaves half a one.
    newest = next((event for line in reversed(lines) if (event := _decoded(line))), None)
    if first is None:
        begun = next((event for line in lines if (event := _decoded(line))), None)
        first = _number(begun or {}, "time")
    for line in lines:
        if b'"sites"' not in line and b'"ended"' not in line:
            continue
        event = _decoded(line)
        if event is None:
            continue
        time = _number(event, "time") or 0.0
        said = event.get("sites")
        for name, one in said.items() if isinstance(said, dict) else ():
            if isinstance(one, dict):
                before = sites.get(name, {})
                same = before.get("state") == one.get("state")
                waited_s = _number(one, "waited_s") or 0.0
                since = before["since"] if same else time - waited_s
                sites[str(name)] = MappingProxyType({**one, "told": time, "since": since})
        if isinstance(event.get("ended"), dict) and isinstance(event.get("round"), int):
            rounds[event["round"]] = MappingProxyType(event)
    return Chronicle(
        last=MappingProxyType(newest) if newest else last,
        first=first,
        sites=MappingProxyType(sites),
        rounds=MappingProxyType(dict(sorted(rounds.items()))),
        bytes=found.bytes + len(whole),
    )


def _decoded(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _number(event: Event, name: str) -> float | None:
    value = event.get(name)
    return float(value) if isinstance(value, int | float) else None


_readers: OrderedDict[Path, _Reader] = OrderedDict()
_readers_lock = threading.Lock()


def chronicle_of(run: Path) -> Chronicle:
    """What the journal of the run in a folder has told."""
    path = run / EVENTS
    with _readers_lock:
        reader = _readers.pop(path, None) or _Reader()
        _readers[path] = reader
        while len(_readers) > MOST_KEPT:
            _readers.popitem(last=False)
    with reader.lock:
        return reader.read_on(path)


def lines_after(run: Path, from_byte: int) -> list[tuple[int, str]]:
    """Whole lines of the journal after ``from_byte``: where each ends, and what it is.

    ``MOST_READ_BYTES`` at most; a place that is no line's begin, or none of the file's, counts as
    its beginning. Lines that are no JSON are left out.
    """
    try:
        with (run / EVENTS).open("rb") as file:
            if from_byte:
                file.seek(from_byte - 1)
                if file.read(1) != b"\n":
                    from_byte = 0
                    file.seek(0)
            content = file.read(MOST_READ_BYTES)
    except FileNotFoundError:
        return []
    found, at = [], from_byte
    for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
        at += len(line)
        if _decoded(line) is not None:
            found.append((at, line.decode().strip()))
    return found
