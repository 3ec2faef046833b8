import itertools
import json
import time
from pathlib import Path

import pytest

from aggregator import lifecycle
from aggregator.home import AggregatorHome
from aggregator.lifecycle import (
    ALLOWED,
    ENDED,
    Interrupted,
    RunState,
    State,
    Steering,
    Wanted,
    quorum_of,
    read_state,
    request,
    submit,
    transition,
)
from aggregator.runs import RunError, hold_run, prepare_run
from shared.contract import RunContract

CONTRACT = RunContract(name="demo")


class Link:
    """A SuperLink that starts whatever it is given, or refuses."""

    def __init__(self, *, works: bool = True) -> None:
        self.started, self._works = 0, works

    def has_ended(self, run_id: int) -> bool:
        return True

    def start(self, *, bundle: bytes, digest: str, config: dict[str, str]) -> int:
        if not self._works:
            raise RuntimeError("down")
        self.started += 1
        return self.started


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return prepare_run(AggregatorHome(tmp_path), CONTRACT, sites=["a"], public=None)


def put(run: Path, state: State, *, wanted: Wanted = "run", since: float | None = None) -> None:
    """Leaves a state on the disk, as another process would have."""
    at = time.time() if since is None else since
    document = RunState(state=state, since=at, wanted=wanted, rounds=CONTRACT.rounds)
    (run / "state.json").write_text(document.model_dump_json())


@pytest.mark.parametrize(("before", "after"), list(itertools.product(ALLOWED, ALLOWED)))
def test_what_the_table_allows_happens_and_nothing_else(
    run: Path, before: State, after: State
) -> None:
    put(run, before)
    with hold_run(run):
        if after in ALLOWED[before]:
            assert transition(run, after, reason="why").state == after
            assert (read_state(run).state, read_state(run).reason) == (after, "why")
        else:
            with pytest.raises(RunError, match=f"is {before}: it cannot become {after}"):
                transition(run, after)
            assert read_state(run).state == before


def test_a_run_without_a_state_has_the_one_its_files_show(run: Path) -> None:
    assert read_state(run).state == "prepared"
    (run / "checkpoint.safetensors").touch()
    assert read_state(run).state == "paused"
    with hold_run(run):
        assert read_state(run).state == "running"
    for name in ("result.json", "pairs.safetensors"):
        (run / name).touch()
    assert read_state(run).state == "finished"
    (run / "state.json").write_text("{")
    with pytest.raises(RunError, match=r"state\.json is damaged"):
        read_state(run)


@pytest.mark.parametrize("state", ["running", "stopping"])
def test_a_killed_serverapp_leaves_a_paused_run(run: Path, state: State) -> None:
    put(run, state)
    with hold_run(run):
        assert read_state(run).state == state
    found = read_state(run)
    assert (found.state, found.wanted) == ("paused", "run")
    assert "ServerApp" in found.reason
    put(run, state, wanted="abort")
    assert read_state(run).state == "aborted"
    put(run, state)
    for name in ("result.json", "pairs.safetensors"):
        (run / name).touch()
    assert read_state(run).state == "finished", "killed after the last byte"


def test_a_submitted_run_that_never_begins_counts_as_paused(run: Path) -> None:
    put(run, "submitted")
    assert read_state(run).state == "submitted"
    put(run, "submitted", since=time.time() - lifecycle.START_WITHIN_S - 1)
    assert read_state(run).state == "paused"


@pytest.mark.parametrize("wanted", ["pause", "stop", "abort"])
@pytest.mark.parametrize("state", ["prepared", "submitted", "paused", "failed"])
def test_what_nobody_works_on_is_paused_or_aborted_at_once(
    run: Path, state: State, wanted: Wanted
) -> None:
    put(run, state)
    assert request(run, wanted).state == ("aborted" if wanted == "abort" else "paused")


@pytest.mark.parametrize("wanted", ["pause", "stop", "abort"])
def test_a_serverapp_obeys_at_once_or_after_the_round(run: Path, wanted: Wanted) -> None:
    put(run, "submitted")
    with hold_run(run):
        steering = Steering(run)
        steering.begin()
        steering.check()
        steering.round_ended(1, last=False)
        assert request(run, wanted).state == "stopping"
        at_once = Steering(run)
        if wanted == "pause":
            at_once.check()
        else:
            with pytest.raises(Interrupted):
                at_once.check()
        with pytest.raises(Interrupted):
            steering.round_ended(2, last=False)
        steering.round_ended(3, last=True)  # nothing is left to be paused
        steering.end()
    found = read_state(run)
    assert found.state == ("aborted" if wanted == "abort" else "paused")
    assert found.round == 3


def test_going_on_is_asked_before_the_round_has_ended(run: Path) -> None:
    put(run, "running")
    with hold_run(run):
        request(run, "pause")
        assert request(run, "run").state == "running"
        Steering(run).round_ended(1, last=False)


def test_a_run_paused_while_it_was_submitted_does_not_begin(run: Path) -> None:
    put(run, "submitted")
    request(run, "pause")
    with hold_run(run):
        with pytest.raises(Interrupted):
            Steering(run).begin()
        Steering(run).end()
    assert read_state(run).state == "paused"


@pytest.mark.parametrize("state", ENDED)
@pytest.mark.parametrize("wanted", ["run", "pause", "stop", "abort"])
def test_nothing_is_asked_of_a_run_that_has_ended(run: Path, state: State, wanted: Wanted) -> None:
    put(run, state)
    with pytest.raises(RunError, match=f"is {state}"):
        request(run, wanted)


def test_a_paused_run_is_submitted_again_and_a_running_one_is_not(run: Path) -> None:
    link = Link()
    assert request(run, "pause").wanted == "pause"
    assert submit(link, run)  # type: ignore[arg-type]
    assert (read_state(run).state, read_state(run).wanted, link.started) == ("submitted", "run", 1)
    put(run, "stopping", wanted="pause")
    with hold_run(run):
        assert not submit(link, run)  # type: ignore[arg-type]
        assert (read_state(run).state, read_state(run).wanted) == ("running", "run")
    put(run, "aborted")
    with pytest.raises(RunError, match="change the contract's seed"):
        submit(link, run)  # type: ignore[arg-type]
    assert link.started == 1


def test_a_submission_that_fails_leaves_the_state_as_it_was(run: Path) -> None:
    put(run, "failed")
    before = json.loads((run / "state.json").read_text())
    with pytest.raises(RuntimeError, match="down"):
        submit(Link(works=False), run)  # type: ignore[arg-type]
    assert json.loads((run / "state.json").read_text()) == before


@pytest.mark.parametrize(
    ("sites", "share", "least"), [(3, 0.5, 2), (4, 0.5, 2), (5, 0.5, 3), (3, 0, 1), (10, 0.7, 7)]
)
def test_quorum_is_at_least_the_share(sites: int, share: float, least: int) -> None:
    assert quorum_of(["s"] * sites, share) == least
