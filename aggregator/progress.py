"""The run's journal: what it is doing, how far it is, and how long it will still take.

One JSON object a line in ``events.jsonl``; the launcher follows it. A line cut off by a crash is
left out by its reader and ended by the next writer.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

Phase = Literal[
    "public", "anchor", "probes", "distil", "evaluate", "paused", "aborted", "done", "failed"
]
LEAST_INTERVAL_S = 0.3
AT_LEAST_EVERY_S = 5.0
"""How often it is said what the sites do, though nothing has changed."""

SiteState = Literal[
    "asked", "computing", "answered", "rejected", "offline", "gone", "refused", "late"
]


class SiteNews(TypedDict):
    """What a site does in the round, how long it has been waited for, and why."""

    state: SiteState
    waited_s: float
    reason: str


class Journal:
    """Appends events; thins those that come faster than anyone can read."""

    def __init__(
        self,
        file: Path,
        *,
        rounds: int,
        round: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file, self._rounds, self._clock = file, rounds, clock
        self._round = round
        self._phase: str = ""
        self._phase_start = clock()
        self._last = float("-inf")
        self._round_kind, self._round_start = "", clock()
        self._took: dict[str, list[float]] = {}
        self._remaining: dict[str, int] = {}
        self._sites: dict[str, SiteNews] = {}
        self._sites_told = float("-inf")
        self._at = 0, 0
        # What a killed writer left half written becomes a line of its own.
        whole = not file.exists() or file.read_bytes()[-1:] in (b"", b"\n")
        self._closing = "" if whole else "\n"

    def begin_round(self, round: int, *, kind: str, remaining: dict[str, int]) -> None:
        """A round starts; ``remaining`` counts the rounds after it by kind."""
        self._round, self._round_kind, self._round_start = round, kind, self._clock()
        self._remaining = dict(remaining)
        self._sites = {}

    def end_round(self, **figures: Any) -> float:
        """The round has ended and ``figures`` are what is told of it; returns its seconds."""
        seconds = self._clock() - self._round_start
        self._took.setdefault(self._round_kind, []).append(seconds)
        if figures:
            self._write(message="", ended={"seconds": round(seconds, 2), **figures})
        return seconds

    def sites(self, news: Mapping[str, SiteNews]) -> None:
        """What sites do: written when a state changes, and every few seconds."""
        now = self._clock()
        before = {name: one["state"] for name, one in self._sites.items()}
        self._sites.update(news)
        after = {name: one["state"] for name, one in self._sites.items()}
        if before != after or now - self._sites_told >= AT_LEAST_EVERY_S:
            self._sites_told = now
            waits = [one["reason"] for _, one in sorted(news.items()) if one["reason"]]
            self._write(message="; ".join(waits), sites=dict(self._sites))

    def step(self, phase: Phase, done: int, total: int, message: str = "") -> None:
        """Something went on; the first and last step of a phase are always written."""
        now = self._clock()
        if phase != self._phase:
            self._phase, self._phase_start, self._last = phase, now, float("-inf")
        if now - self._last < LEAST_INTERVAL_S and done < total and not message:
            return
        self._last, self._at = now, (done, total)
        self._write(message=message)

    def _write(self, *, message: str, **more: Any) -> None:
        done, total = self._at
        event = {
            "time": time.time(),
            "phase": self._phase,
            "round": self._round,
            "rounds": self._rounds,
            "done": done,
            "total": total,
            "eta_s": self._eta_s(self._clock(), self._phase),
            "message": message,
            **more,
        }
        with self._file.open("a", encoding="utf-8") as file:
            file.write(self._closing + json.dumps(event) + "\n")
        self._closing = ""

    def _eta_s(self, now: float, phase: str) -> float | None:
        """Seconds to the end of the run, from rounds of the same kind; None while unknown."""
        if phase in ("done", "failed", "aborted"):
            return 0.0
        if phase in ("public", "evaluate"):  # before the first round, and after the last
            return None
        everything = [seconds for times in self._took.values() for seconds in times]
        if not everything:
            return None
        typical = {kind: sum(times) / len(times) for kind, times in self._took.items()}
        fallback = sum(everything) / len(everything)
        ahead = sum(n * typical.get(kind, fallback) for kind, n in self._remaining.items())
        current = typical.get(self._round_kind, fallback) - (now - self._round_start)
        return round(ahead + max(current, 0.0), 1)
