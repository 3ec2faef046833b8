"""`aggregator up` goes on with runs that lost their ServerApp, or whose sites have come back.

Looked at every few seconds: what is wanted is that a run runs, and nobody works on it. A run that
somebody paused, that failed, or whose sites refuse is left alone: a person decides.
"""

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from aggregator.enrolment import EnrolmentError
from aggregator.home import AggregatorHome
from aggregator.hospital_table import EVALUATION
from aggregator.lifecycle import is_lost, quorum_of, read_state, submit
from aggregator.runs import NETWORKS, RunError, flower_run, is_held, read_plan
from aggregator.superlink import SuperLink, SuperLinkError, superlink

LOOK_EVERY_S = 2.0
SUBMITTED_S = 8.0
"""A run that is just being submitted is left alone for this long."""
FIRST_PAUSE_S = 2.0
PATIENT_AFTER = 3
"""Attempts in a row that bring nothing, before the pauses grow: somebody may be at work there."""
LONGEST_PAUSE_S = 120.0
"""Between attempts at a run that ends again without a round more."""


@dataclass
class Attempts:
    """How often a run was submitted since it last got further, and when it may be again."""

    reached: tuple[int, ...]
    count: int = 0
    pause_s: float = FIRST_PAUSE_S
    not_before: float = field(default=float("-inf"))


def go_on(home: AggregatorHome, stop: threading.Event, tell: Callable[[str], None]) -> None:
    """Looks and goes on until ``stop`` is set; a SuperLink that is down is waited for.

    ``tell`` is given the name of each run that goes on.
    """
    attempts: dict[str, Attempts] = {}
    while not stop.wait(LOOK_EVERY_S):
        if not waiting_runs(home) and not submitted_runs(home):
            continue
        try:
            with superlink(home) as link:
                for run in resume_runs(home, link, attempts=attempts):
                    tell(run)
        except (SuperLinkError, EnrolmentError, OSError):
            continue  # it is being started again


def waiting_runs(home: AggregatorHome) -> list[Path]:
    """Runs that should run, and do not for no reason that a person has to mend."""
    found = []
    for run in sorted(home.runs.glob("[0-9a-f]" * 16)):
        try:
            state = read_state(run)
            paused = state.state == "paused" and state.wanted == "run"
            if paused and (is_lost(run) or state.missing):
                found.append(run)
        except RunError:
            continue  # damaged; `run show` says how
    return found


def submitted_runs(home: AggregatorHome) -> list[Path]:
    """Runs that Flower was given a while ago, and that no ServerApp has begun to work on."""
    found = []
    for run in sorted(home.runs.glob("[0-9a-f]" * 16)):
        try:
            state = read_state(run)
        except RunError:
            continue
        waited_s = time.time() - state.since
        if state.state == "submitted" and waited_s > SUBMITTED_S and not is_held(run):
            found.append(run)
    return found


def resume_runs(
    home: AggregatorHome,
    link: SuperLink,
    *,
    attempts: dict[str, Attempts],
    clock: Callable[[], float] = time.monotonic,
) -> list[str]:
    """Submits what can go on now; gives the runs' names. Raises ``SuperLinkError``."""
    resumed = []
    online = {node.name for node in link.nodes() if node.online}
    # One that Flower has lost before it began, with its SuperLink, will not begin.
    stranded = [run for run in submitted_runs(home) if link.has_ended(flower_run(run))]
    for run in (*waiting_runs(home), *stranded):
        reached, tried = _reached(run), attempts.get(run.name)
        if tried is None or tried.reached != reached:
            tried = attempts[run.name] = Attempts(reached)
        if clock() < tried.not_before or not _enough(run, online):
            continue
        tried.not_before = clock() + tried.pause_s
        tried.count += 1
        if tried.count >= PATIENT_AFTER:
            tried.pause_s = min(2 * tried.pause_s, LONGEST_PAUSE_S)
        try:
            if submit(link, run):
                resumed.append(run.name)
        except RunError:
            continue
    return resumed


def _reached(run: Path) -> tuple[int, ...]:
    """How far the run is: its rounds, then what is there of its judgement, bytes."""
    judged = (run / name for name in (NETWORKS, EVALUATION))
    return read_state(run).round, *(one.stat().st_size if one.exists() else 0 for one in judged)


def _enough(run: Path, online: Collection[str]) -> bool:
    """Whether a quorum is online, one of those that were missing among them."""
    sites, missing = read_plan(run).sites, read_state(run).missing
    there = [site for site in sites if site in online]
    if missing and not set(missing) & set(there):
        return False
    return len(there) >= quorum_of(sites, read_plan(run).quorum)
