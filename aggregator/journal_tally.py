"""What the journals of all runs say in sum: rounds, their seconds and bytes, answers not used.

Each journal is read as it grows, so that a scrape costs what was written since the last one.
"""

import re
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aggregator.runs import read_events
from shared.messages import RefusalCode

UNUSED = ("refused", "rejected", "late", "offline", "gone")
"""What becomes of a site in a round whose answer is not used."""
KINDS = ("anchor", "probes")
_REFUSED = re.compile(r"refused: ([a-z-]+)")
_CODES = frozenset(code.value for code in RefusalCode)


class JournalTally:
    """Counts over journals since they began; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read: dict[str, int] = {}
        self._ended: dict[str, set[int]] = {}
        self._counted: set[tuple[str, int, str, str]] = set()
        self.rounds: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.bytes_up = 0
        self.bytes_down = 0
        self.unused: Counter[tuple[str, str]] = Counter()
        """By what became of the site, and the code of a refusal."""
        self.loss: dict[str, float] = {}
        """Matching distance after a run's last round, by the run's name."""

    def read(self, runs: Path) -> "JournalTally":
        """Takes into account what was written since the last time."""
        with self._lock:
            for run in sorted(runs.glob("[0-9a-f]" * 16)):
                try:
                    events, position = read_events(run, from_byte=self._read.get(run.name, 0))
                except OSError:
                    continue
                self._read[run.name] = position
                for event in events:
                    self._count(run.name, event)
        return self

    def _count(self, run: str, event: Mapping[str, Any]) -> None:
        number = _whole(event.get("round"))
        sites = event.get("sites")
        if isinstance(sites, dict):
            for site, told in sites.items():
                state = told.get("state") if isinstance(told, dict) else None
                if state in UNUSED and (run, number, site, state) not in self._counted:
                    self._counted.add((run, number, site, state))
                    self.unused[state, _code(state, told.get("reason"))] += 1
        ended = event.get("ended")
        # A round that was asked again after a stop ended once.
        if isinstance(ended, dict) and number not in self._ended.setdefault(run, set()):
            self._ended[run].add(number)
            kind = ended.get("asked", event.get("phase"))
            kind = kind if kind in KINDS else "other"
            self.rounds[kind] += 1
            self.seconds[kind] += _number(ended.get("seconds"))  # type: ignore[assignment]
            self.bytes_up += _whole(ended.get("bytes_up"))
            self.bytes_down += _whole(ended.get("bytes_down"))
            if isinstance(ended.get("loss"), int | float):
                self.loss[run] = float(ended["loss"])


def _code(state: str, reason: Any) -> str:
    """The code of a refusal, in our words alone; empty of all else."""
    found = _REFUSED.search(str(reason)) if state == "refused" else None
    return found[1] if found is not None and found[1] in _CODES else ""


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _whole(value: Any) -> int:
    return int(_number(value))
