import json
from pathlib import Path

import pytest

from aggregator.desk_api import run_view, runs
from aggregator.home import AggregatorHome
from aggregator.lifecycle import transition
from aggregator.runs import RunError, prepare_run
from shared.contract import RunContract

CONTRACT = RunContract(name="demo")


@pytest.fixture
def home(tmp_path: Path) -> AggregatorHome:
    return AggregatorHome(tmp_path)


@pytest.fixture
def run(home: AggregatorHome) -> Path:
    return prepare_run(home, CONTRACT, sites=["b", "a"], public=None)


def write_events(run: Path, *events: dict[str, object]) -> None:
    (run / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in events))


def test_a_run_that_nobody_began_is_shown_with_what_is_known(
    home: AggregatorHome, run: Path
) -> None:
    view = run_view(home, CONTRACT.digest())
    assert (view.state.state, view.rounds, view.name) == ("prepared", CONTRACT.rounds, "demo")
    assert [(site.name, site.state) for site in view.sites] == [("a", None), ("b", None)]
    assert view.history == () and view.pairs is None and view.utility is None
    assert type(view).model_validate_json(view.model_dump_json()) == view


def test_the_last_word_on_each_site_and_every_round_that_ended_are_shown(
    home: AggregatorHome, run: Path
) -> None:
    waiting = {"state": "offline", "waited_s": 7.5, "reason": "not connected"}
    write_events(
        run,
        {"time": 1, "phase": "anchor", "round": 1, "sites": {"a": {"state": "answered"}}},
        {
            "time": 2,
            "phase": "anchor",
            "round": 1,
            "ended": {"asked": "probes", "seconds": 9, "bytes_up": 5},
        },
        {"time": 3, "phase": "probes", "round": 2, "eta_s": 4.0, "sites": {"b": waiting}},
    )
    view = run_view(home, run.name[:8])
    assert (view.phase, view.round, view.eta_s, view.updated) == ("probes", 2, 4.0, 3)
    assert [site.state for site in view.sites] == ["answered", "offline"]
    assert (view.sites[1].waited_s, view.sites[1].reason) == (7.5, "not connected")
    (ended,) = view.history
    assert (ended.round, ended.phase, ended.seconds) == (1, "probes", 9)
    assert (ended.bytes_up, ended.loss) == (5, None)


def test_the_newest_run_comes_first_and_a_damaged_one_is_left_out(
    home: AggregatorHome, run: Path
) -> None:
    other = RunContract(name="demo", seed=2)
    second = prepare_run(home, other, sites=["a"], public=None)
    transition(second, "paused")
    assert [one.digest for one in runs(home)] == [other.digest(), CONTRACT.digest()]
    (second / "plan.json").write_text("{")
    assert [one.digest for one in runs(home)] == [CONTRACT.digest()]


def test_a_run_is_found_by_the_beginning_of_its_digest(home: AggregatorHome, run: Path) -> None:
    for wrong in ("", "../x", "0" * 64):
        with pytest.raises(RunError):
            run_view(home, wrong)
