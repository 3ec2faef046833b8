import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from safetensors.numpy import save_file

from aggregator.desk_api import PairsView, run_view, survey
from aggregator.home import AggregatorHome
from aggregator.lifecycle import State, transition
from aggregator.meanings import PHASES, REFUSALS, SITES, STATES
from aggregator.progress import Phase, SiteState
from aggregator.runs import RunError, prepare_run
from shared.contract import RunContract
from shared.messages import RefusalCode

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


def test_the_newest_run_comes_first_and_a_damaged_one_is_named_with_the_reason(
    home: AggregatorHome, run: Path
) -> None:
    other = RunContract(name="demo", seed=2)
    second = prepare_run(home, other, sites=["a"], public=None)
    transition(second, "paused")
    assert [one.digest for one in survey(home).runs] == [other.digest(), CONTRACT.digest()]
    assert survey(home).unreadable == ()
    (second / "plan.json").write_text("{")
    found = survey(home)
    assert [one.digest for one in found.runs] == [CONTRACT.digest()]
    (damaged,) = found.unreadable
    plan = f"runs/{second.name}/plan.json"
    assert (damaged.folder, damaged.reason) == (second.name, f"{plan} is missing or damaged")
    write_events(run, {"time": "yesterday", "phase": "anchor"})
    assert "events.jsonl" in survey(home).unreadable[0].reason + survey(home).unreadable[1].reason
    assert str(home.root) not in survey(home).model_dump_json()


def test_a_site_says_in_words_why_it_is_waited_for(home: AggregatorHome, run: Path) -> None:
    refusal = "a: refused: budget-spent (incident 12ab)"
    write_events(
        run,
        {"time": 9, "sites": {"a": {"state": "refused", "waited_s": 0, "reason": refusal}}},
        {"time": 12, "sites": {"b": {"state": "offline", "waited_s": 2, "reason": "b is not ..."}}},
    )
    first, second = run_view(home, run.name).sites
    why = "refuses: its privacy budget is spent (budget-spent, incident 12ab in its log)"
    assert first.why == why
    assert (second.since, second.why) == (10, SITES["offline"])


def test_every_state_refusal_and_phase_has_a_meaning() -> None:
    assert set(STATES) == set(get_args(State))
    assert set(REFUSALS) == set(RefusalCode)
    assert set(SITES) == set(get_args(SiteState))
    assert set(PHASES) == set(get_args(Phase))


def test_pairs_are_addresses_and_a_shape_never_a_file(home: AggregatorHome, run: Path) -> None:
    (run / "pairs.safetensors").write_bytes(b"half a file")
    assert run_view(home, run.name).pairs is None
    images = np.zeros((3, 1, 4, 4), np.float32)
    save_file({"lq": images, "hq": images}, run / "pairs.safetensors")
    (run / "snapshots").mkdir()
    (run / "snapshots" / "0002.safetensors").touch()
    (run / "snapshots" / ".0003.safetensors.12.part").touch()
    view = run_view(home, run.name)
    here = f"/api/desk/runs/{CONTRACT.digest()}/pairs"
    assert view.pairs == PairsView(url=here, shape=(3, 1, 4, 4))
    (kept,) = view.snapshots
    assert (kept.round, kept.url, kept.sheet) == (2, f"{here}/2", f"{here}/2.png")
    assert str(home.root) not in view.model_dump_json()


def test_a_run_is_found_by_the_beginning_of_its_digest(home: AggregatorHome, run: Path) -> None:
    for wrong in ("", "../x", "0" * 64):
        with pytest.raises(RunError):
            run_view(home, wrong)
