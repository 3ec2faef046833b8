"""Programs that are kept running: started together, each started again with back-off if it ends."""

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aggregator.enrolment import EnrolmentError
from aggregator.events import Event, note
from aggregator.superlink import SuperLinkError
from shared.processes import Process, ProcessError, stop_all

GRACE_S = 8.0
RESTART_AFTER_S = 2.0
SETTLED_S = 60.0
"""A program that ran this long and ends is started again at once; one that did not, ever later."""
MAX_RESTART_AFTER_S = 30.0
LOOK_EVERY_S = 0.5
EXPECTED = (ProcessError, SuperLinkError, EnrolmentError, sqlite3.Error, OSError)
"""Why a program may not start; all else is a mistake of ours."""


@dataclass(frozen=True)
class Service:
    """One or more programs that are of use together alone: where one ends, all do."""

    name: str
    start: Callable[[], Sequence[Process]]


@dataclass
class _Running:
    service: Service
    processes: Sequence[Process]
    started: float = field(default_factory=time.monotonic)
    pause_s: float = 0.0
    again_at: float | None = None

    def poll(self) -> int | None:
        """The exit code of the first that has ended, or None while all run."""
        return next((code for one in self.processes if (code := one.poll()) is not None), None)


class Supervisor:
    """Keeps services running."""

    def __init__(self, services: Sequence[Service], *, log: Path) -> None:
        self._services = tuple(services)
        self._log = log
        self._running: dict[str, _Running] = {}
        self.restarts: Counter[str] = Counter()

    def begin(self) -> None:
        """Starts all, in their order; raises what keeps one from starting."""
        for service in self._services:
            self._running[service.name] = _Running(service, service.start())

    def watch(self, stop: threading.Event, *, errands: Sequence[Callable[[], None]] = ()) -> None:
        """Starts again what ends, and runs the errands between looks, until ``stop`` is set."""
        while not stop.wait(LOOK_EVERY_S):
            for one in self._running.values():
                self._look(one)
            for errand in errands:
                errand()

    def alive(self) -> dict[str, bool]:
        """Which of the services run."""
        return {name: one.poll() is None for name, one in self._running.items()}

    def replace(self, name: str) -> None:
        """Ends a service in order and starts it again at once, or as soon as it can be."""
        one = self._running[name]
        stop_all(one.processes, grace_s=GRACE_S)
        one.again_at = time.monotonic()
        self._look(one)

    def end(self) -> None:
        """Ends all; returns when nothing of them is left."""
        started = [process for one in self._running.values() for process in one.processes]
        stop_all(started, grace_s=GRACE_S)

    def _look(self, one: _Running) -> None:
        code, now, name = one.poll(), time.monotonic(), one.service.name
        if code is None:
            return
        if one.again_at is None:
            settled = now - one.started > SETTLED_S
            one.pause_s = RESTART_AFTER_S if settled or not one.pause_s else one.pause_s
            one.again_at = now + one.pause_s
            note(Event.SERVICE_ENDED, service=name, code=code, again_s=one.pause_s)
        if now < one.again_at:
            return
        stop_all(one.processes, grace_s=1.0)
        one.pause_s = min(2 * (one.pause_s or RESTART_AFTER_S), MAX_RESTART_AFTER_S)
        try:
            one.processes = one.service.start()
        except EXPECTED as error:
            one.again_at = time.monotonic() + one.pause_s
            self._explain(name, error)
            note(Event.SERVICE_FAILED, service=name, again_s=one.pause_s, hint="see logs, up.log")
            return
        one.started, one.again_at = time.monotonic(), None
        self.restarts[name] += 1
        note(Event.SERVICE_STARTED, service=name)

    def _explain(self, name: str, error: BaseException) -> None:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("a", encoding="utf-8") as file:
                file.write(f"{moment} {name}: {error}\n")
        except OSError:
            pass
