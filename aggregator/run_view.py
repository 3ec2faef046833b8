"""`aggregator run show` and `watch`: a run as a person reads it in a terminal."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aggregator.desk_api import RunView
from aggregator.launch import describe_eta
from aggregator.lifecycle import ENDED, is_lost, read_state

COLOURS = {
    "running": "cyan",
    "submitted": "cyan",
    "stopping": "yellow",
    "paused": "yellow",
    "failed": "red",
    "aborted": "red",
    "finished": "green",
    "published": "green",
}
POLL_S = 0.5


def headline(view: RunView) -> str:
    """One line: name, digest, state, phase, round and the time left."""
    parts = [view.name, view.digest[:16], view.state.state]
    if view.state.state in ("running", "stopping") and view.phase:
        parts.append(f"{view.phase} round {view.round}/{view.rounds}")
        parts.append(describe_eta(view.eta_s))
    else:
        parts.append(f"{view.state.round} of {view.rounds} rounds kept")
    return "  ".join(part for part in parts if part)


def render(view: RunView) -> RenderableType:
    """State and reason, each site with why it waits, and the rounds that are done."""
    lines: list[RenderableType] = [Text(headline(view), style=COLOURS.get(view.state.state, ""))]
    if view.state.reason:
        lines.append(Text(f"because: {view.state.reason}"))
    sites = Table("site", "state", "waited", "why", box=None, pad_edge=False)
    for site in view.sites:
        waited = "" if not site.waited_s else f"{site.waited_s:.0f} s"
        sites.add_row(*(Text(cell) for cell in (site.name, site.state or "", waited, site.why)))
    lines.append(sites)
    if view.history:
        rounds = Table("round", "phase", "s", "sites", "KiB up", "KiB down", "loss", "ε", box=None)
        for one in view.history:
            rounds.add_row(
                str(one.round),
                one.phase,
                _number(one.seconds, ".1f"),
                _number(one.sites, "d"),
                _number(one.bytes_up and one.bytes_up / 1024, ".0f"),
                _number(one.bytes_down and one.bytes_down / 1024, ".0f"),
                _number(one.loss, ".4f"),
                _number(one.epsilon, ".3g"),
            )
        lines.append(rounds)
    return Group(*lines)


def looks(run: Path, view: Callable[[], RunView], *, poll_s: float = POLL_S) -> Iterator[RunView]:
    """The run again and again, until nobody works on it and nobody is about to."""
    while True:
        seen = view()
        yield seen
        state = read_state(run)
        if state.state in (*ENDED, "failed", "prepared"):
            break
        if state.state == "paused" and not state.missing and not is_lost(run):
            break
        time.sleep(poll_s)
    yield view()


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
