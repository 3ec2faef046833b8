"""The life of a run: which state it is in, what is wanted of it, and what may follow what.

``state.json`` in the run's folder is a :class:`RunState`. Whoever changes it holds ``state.lock``
for that moment, so a command and the ServerApp never overwrite one another. A ServerApp that was
killed cannot say so: a run that claims to be running while nobody holds its ``lock`` counts as
paused, from the first look on, and nothing has to be cleaned up.
"""

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from aggregator.hospital_table import JudgementError, is_judged
from aggregator.runs import (
    START_WITHIN_S,
    RunError,
    is_finished,
    is_held,
    read_run_contract,
    start_run,
)
from aggregator.superlink import SuperLink
from shared.durable import write_durably
from shared.frozen import Frozen, Slug

STATE = "state.json"
ENDS_WITHIN_S = 15.0
LOOK_S = 0.3
"""How often a ServerApp looks at what is wanted of it."""

State = Literal[
    "prepared",
    "submitted",
    "running",
    "stopping",
    "paused",
    "failed",
    "finished",
    "published",
    "aborted",
]
Wanted = Literal["run", "pause", "stop", "abort"]
"""``pause``: end after the round; ``stop``: end at once, the round is asked again; ``abort``: for
good."""

ALLOWED: dict[State, frozenset[State]] = {
    "prepared": frozenset({"submitted", "running", "paused", "failed", "finished", "aborted"}),
    "submitted": frozenset({"running", "paused", "failed", "finished", "aborted", "submitted"}),
    "running": frozenset({"stopping", "paused", "failed", "finished", "aborted", "running"}),
    "stopping": frozenset({"running", "paused", "failed", "finished", "aborted", "stopping"}),
    "paused": frozenset({"submitted", "running", "paused", "failed", "finished", "aborted"}),
    "failed": frozenset({"submitted", "running", "paused", "failed", "finished", "aborted"}),
    # A finished run whose hospitals are still to be heard is worked on once more.
    "finished": frozenset({"submitted", "running", "finished", "published"}),
    "published": frozenset({"published", "submitted", "running"}),
    "aborted": frozenset(),
}
"""What may follow what; everything else is refused."""

WORKING: tuple[State, ...] = ("submitted", "running", "stopping")
ENDED: tuple[State, ...] = ("finished", "published", "aborted")
NOBODY = "nobody works on it: its ServerApp ended, or never began"


class RunState(Frozen):
    """Where a run is."""

    state: State
    since: float = Field(description="when it came into that state, seconds since 1970")
    reason: str = Field("", description="why, in words that are safe to show")
    round: int = Field(0, ge=0, description="rounds that are done and kept")
    rounds: int = Field(0, ge=0)
    wanted: Wanted = "run"
    missing: tuple[Slug, ...] = Field((), description="sites whose silence paused it")


class Interrupted(Exception):  # noqa: N818
    """Raised inside a ServerApp whose run is to be paused or aborted; carries no message."""


def read_state(run: Path) -> RunState:
    """The run's state as it is now, whatever a killed process left. Raises ``RunError``."""
    found = _stored(run)
    if found.state not in WORKING or is_held(run):
        return found
    found = _stored(run)  # it may have ended properly between the two looks
    if found.state not in WORKING or is_held(run):
        return found
    if found.state == "submitted" and time.time() - found.since < START_WITHIN_S:
        return found
    if _has_ended(run):
        return found.model_copy(update={"state": "finished", "round": found.rounds})
    if found.wanted == "abort":
        return found.model_copy(update={"state": "aborted"})
    return found.model_copy(update={"state": "paused", "reason": found.reason or NOBODY})


def is_lost(run: Path) -> bool:
    """Whether a ServerApp should work on the run and none does: it was killed, or never began."""
    return _stored(run).state in WORKING and read_state(run).state == "paused"


def mark_published(run: Path) -> None:
    """Says that a release of the run is in the catalog; raises ``RunError``."""
    with _writing(run):
        found = read_state(run)
        if found.state not in ("finished", "published"):  # an earlier end, its pairs are there
            found = _move(run, found, "finished")
        _move(run, found, "published", round=found.rounds)


def transition(run: Path, to: State, *, reason: str = "", **changes: Any) -> RunState:
    """Brings the run into another state; ``changes`` are other fields of :class:`RunState`.

    Raises ``RunError`` where the table does not allow it.
    """
    with _writing(run):
        return _move(run, read_state(run), to, reason=reason, **changes)


def request(run: Path, wanted: Wanted) -> RunState:
    """Asks for something of a run, at work or not; what was asked before is replaced.

    A ServerApp that works on it obeys within a second (``pause``: after the round). Where none
    does, the run is paused or aborted at once; to go on with it is the caller's, by
    :func:`submit`. Raises ``RunError`` where the run has ended.
    """
    with _writing(run):
        found = read_state(run)
        if found.state in ENDED:
            raise RunError(f"run {run.name} is {found.state}: there is nothing to {wanted}")
        working = found.state in ("running", "stopping")
        if wanted == "run":
            to: State = "running" if working else found.state
            reason = "" if working else found.reason
        elif working:
            to, reason = "stopping", f"{wanted} was asked"
        else:
            to, reason = ("aborted" if wanted == "abort" else "paused"), f"{wanted} was asked"
        if to == found.state == "prepared":
            return _keep(run, found.model_copy(update={"wanted": wanted}))
        return _move(run, found, to, reason=reason, wanted=wanted, missing=found.missing)


def submit(link: SuperLink, run: Path) -> bool:
    """Submits the run to Flower, to go on where it was; False where it is worked on already.

    Raises ``RunError`` where it was aborted, ``SuperLinkError``.
    """
    _await_end(run)
    with _writing(run):
        found = read_state(run)
        if found.state == "aborted":
            raise RunError(f"run {run.name} was aborted: change the contract's seed for a new run")
        if found.state in ("running", "stopping"):
            if found.wanted != "run":
                _move(run, found, "running", wanted="run")
            return False
        _move(run, found, "submitted", wanted="run")
        try:
            return start_run(link, run)
        except BaseException:
            _keep(run, found)
            raise


def _await_end(run: Path) -> None:
    """Waits for a ServerApp that has done what was wanted, and is about to end (or to begin)."""
    deadline = time.monotonic() + ENDS_WITHIN_S
    while is_held(run) and read_state(run).state not in ("running", "stopping"):
        if time.monotonic() >= deadline:
            raise RunError(f"a process still holds run {run.name}: try again in a minute")
        time.sleep(0.05)


class Steering:
    """What a ServerApp asks while it works: whether to go on. Raises :class:`Interrupted`."""

    def __init__(self, run: Path) -> None:
        self._run, self._looked = run, float("-inf")

    def check(self) -> None:
        """At any time: ends for ``stop`` and ``abort``."""
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        if _stored(self._run).wanted in ("stop", "abort"):
            raise Interrupted

    def round_ended(self, number: int, *, last: bool) -> None:
        """After a round was kept: ends for ``pause`` too, unless it was the last."""
        with _writing(self._run):
            found = _stored(self._run)
            _keep(self._run, found.model_copy(update={"round": number}))
        if found.wanted != "run" and not last:
            raise Interrupted

    def begin(self) -> None:
        """Before anything: a run that was paused while it was being submitted does not begin."""
        with _writing(self._run):
            found = read_state(self._run)
            if found.wanted == "run":
                _move(self._run, found, "running")
        if found.wanted != "run":
            raise Interrupted

    def end(self) -> None:
        """After :class:`Interrupted`: the run is what was asked for."""
        wanted = _stored(self._run).wanted
        to: State = "aborted" if wanted == "abort" else "paused"
        transition(self._run, to, reason=f"{wanted} was asked")


def quorum_of(sites: Sequence[str], share: float) -> int:
    """How many of the sites must answer."""
    exact = share * len(sites)
    return max(1, int(exact) + (exact - int(exact) > 1e-9))


def _has_ended(run: Path) -> bool:
    """Whether the pairs are there, and all that hospitals were to say of them."""
    try:
        return is_finished(run) and is_judged(run, read_run_contract(run))
    except JudgementError:
        return False  # who goes on with the run says what is damaged


def _stored(run: Path) -> RunState:
    try:
        return RunState.model_validate_json((run / STATE).read_bytes())
    except FileNotFoundError:
        pass  # launched by an earlier version, or not yet
    except (OSError, ValidationError):
        raise RunError(f"{run / STATE} is damaged: remove it; nothing of the run is lost") from None
    rounds = read_run_contract(run).rounds
    state: State = "running" if is_held(run) else "prepared"
    if (run / "checkpoint.safetensors").exists() and state == "prepared":
        state = "paused"
    if is_finished(run):
        state = "finished"
    since = (run / "contract.json").stat().st_mtime
    return RunState(state=state, since=since, rounds=rounds)


def _move(run: Path, found: RunState, to: State, *, reason: str = "", **changes: Any) -> RunState:
    if to not in ALLOWED[found.state]:
        raise RunError(f"run {run.name} is {found.state}: it cannot become {to}")
    since = found.since if to == found.state else time.time()
    update = {"state": to, "since": since, "reason": reason, "missing": (), **changes}
    return _keep(run, RunState.model_validate({**found.model_dump(), **update}))


def _keep(run: Path, state: RunState) -> RunState:
    write_durably(run / STATE, state.model_dump_json(indent=2).encode())
    return state


@contextmanager
def _writing(run: Path) -> Iterator[None]:
    """Held for milliseconds, but for a submission; the kernel lets go of it in any case."""
    descriptor = os.open(run / "state.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
