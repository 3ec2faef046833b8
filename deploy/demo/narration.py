"""What the demo tells while it works: phase, what is going on in it, and how long it may take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.status import Status

QUIET_S = 5.0
"""Without a terminal a step is printed at most this often."""


class Narrator:
    """One line a finished phase, and one that changes below it on a terminal."""

    def __init__(self, console: Console, *, phases: int) -> None:
        self.seconds: dict[str, float] = {}
        """How long each phase took."""
        self._console = console
        self._phases = phases
        self._title = ""
        self._status: Status | None = None
        self._began = time.monotonic()
        self._last = 0.0

    @contextmanager
    def phase(self, name: str, title: str) -> Iterator[None]:
        """A phase; ``name`` is its key in ``seconds``."""
        self._title = f"[{len(self.seconds) + 1}/{self._phases}] {title}"
        self._last = 0.0
        began = time.monotonic()
        if self._console.is_terminal:
            self._status = self._console.status(escape(self._title))
            self._status.start()
        else:
            self._console.print(self._title, markup=False, highlight=False)
        try:
            yield
        finally:
            if self._status is not None:
                self._status.stop()
                self._status = None
        self.seconds[name] = round(time.monotonic() - began, 2)
        took = f"{self.seconds[name]:.1f} s" if self.seconds[name] < 100 else self.elapsed(began)
        self._console.print(f"{self._title}: done in {took}", markup=False, highlight=False)

    def step(self, text: str, *, important: bool = False) -> None:
        """What is going on now."""
        if self._status is not None:
            self._status.update(
                escape(f"{self._title}: {text} ({self.elapsed(self._began)} so far)")
            )
        elif important or time.monotonic() - self._last > QUIET_S:
            self._last = time.monotonic()
            line = f"  {self.elapsed(self._began)}  {text}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @staticmethod
    def elapsed(since: float) -> str:
        """Minutes and seconds since a moment."""
        return clock(time.monotonic() - since)


def clock(seconds: float) -> str:
    """``2:05``."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
