"""Progress on standard error: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 5.0

Advance = Callable[[int, int], None]
"""Called with what is done and what there is in all."""


@contextmanager
def progress(what: str, *, unit: str, quiet: bool = False) -> Iterator[Advance]:
    """Shows how far ``what`` is, with the time left; ``unit`` is ``bytes`` or a plural noun."""
    console = Console(stderr=True)
    if quiet:
        yield lambda done, total: None
    elif console.is_terminal:
        amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        columns = (TextColumn(what), BarColumn(), amount, TextColumn(unit), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        yield _lines(console, what, unit)


def _lines(console: Console, what: str, unit: str) -> Advance:
    said = time.monotonic()
    first: tuple[float, int] | None = None

    def advance(done: int, total: int) -> None:
        nonlocal said, first
        now = time.monotonic()
        # What came before the first call is no measure of what is left.
        began, before = first = first or (now, done)
        if now - said < SECONDS_BETWEEN_LINES or done <= before:
            return
        said = now
        left = (now - began) * (total - done) / (done - before)
        console.print(f"{what}: {done} of {total} {unit}, about {left:.0f} s left", highlight=False)

    return advance
