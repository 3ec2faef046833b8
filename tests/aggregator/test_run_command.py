import json
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aggregator.cli import app
from aggregator.home import AggregatorHome, create_home
from aggregator.lifecycle import RunState, State, read_state, transition
from aggregator.runs import hold_run, prepare_run
from shared.contract import RunContract

CONTRACT = RunContract(name="demo")


@pytest.fixture
def home(tmp_path: Path) -> AggregatorHome:
    return create_home(tmp_path / "home", {})


def run_in(home: AggregatorHome, state: State = "prepared") -> Path:
    run = prepare_run(home, CONTRACT, sites=["st-anna", "st-bruno"], public=None)
    left = RunState(state=state, since=time.time(), rounds=CONTRACT.rounds)
    (run / "state.json").write_text(left.model_dump_json())
    return run


def ask(home: AggregatorHome, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["run", *arguments, "--home", str(home.root)])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


def test_runs_are_listed(home: AggregatorHome) -> None:
    assert "no run yet" in ask(home, "list")
    run = run_in(home, "paused")
    assert ask(home, "list") == f"demo  {run.name}  paused  0 of {CONTRACT.rounds} rounds kept\n"
    (listed,) = json.loads(ask(home, "list", "--json"))["runs"]
    assert (listed["digest"], listed["state"]["state"]) == (CONTRACT.digest(), "paused")


def test_a_run_is_shown_with_why_each_site_waits(home: AggregatorHome) -> None:
    run = run_in(home)
    waiting = {"state": "offline", "waited_s": 42.0, "reason": "st-bruno is not connected"}
    event = {"phase": "probes", "round": 2, "rounds": 6, "sites": {"st-bruno": waiting}}
    ended = {**event, "ended": {"seconds": 7.25, "bytes_up": 2048, "loss": 0.5, "sites": 2}}
    (run / "events.jsonl").write_text(f"{json.dumps(event)}\n{json.dumps(ended)}\n")
    transition(run, "paused", reason="1 of 2 sites")
    shown = ask(home, "show", "demo")
    for text in ("paused", "because: 1 of 2 sites", "42 s", "is not connected", "0.5000"):
        assert text in shown
    assert json.loads(ask(home, "show", run.name[:6], "--json"))["digest"] == CONTRACT.digest()


@pytest.mark.parametrize(
    ("command", "state"), [("pause", "paused"), ("stop", "paused"), ("abort", "aborted")]
)
def test_what_is_asked_of_a_run(home: AggregatorHome, command: str, state: str) -> None:
    run = run_in(home, "submitted")
    more = ["--yes"] if command == "abort" else []
    told = json.loads(ask(home, command, "demo", *more, "--json"))
    assert (told["run"], told["state"], told["wanted"]) == (run.name, state, command)
    run_in(home, "running")
    with hold_run(run):
        assert ask(home, command, "demo", *more) == (
            f"run {run.name} is stopping: {command} was asked\n"
        )
    run_in(home, "published")
    assert "is published" in ask(home, command, "demo", *more, code=1)


def test_abort_asks_whether_it_is_meant(home: AggregatorHome) -> None:
    run = run_in(home, "paused")
    ask(home, "abort", "demo", code=1)  # nobody answers
    assert read_state(run).state == "paused"


def test_resuming_without_a_superlink_says_so(home: AggregatorHome) -> None:
    run = run_in(home, "paused")
    assert "aggregator up" in ask(home, "resume", "demo", code=1)
    assert read_state(run).state == "paused"


def test_watching_ends_with_the_run_and_tells_every_change_once(home: AggregatorHome) -> None:
    run = run_in(home, "running")

    def work() -> None:
        with hold_run(run):
            time.sleep(0.8)
            with (run / "events.jsonl").open("a") as events:
                events.write('{"phase": "probes", "round": 1, "rounds": 6}\n')
            time.sleep(0.8)
            transition(run, "finished")

    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(0.1)
    lines = [json.loads(line) for line in ask(home, "watch", "demo", "--json").splitlines()]
    worker.join()
    assert [line["state"]["state"] for line in lines] == ["running", "running", "finished"]
    assert [line["phase"] for line in lines] == ["", "probes", "probes"]


def test_watching_a_run_that_is_paused_ends_with_1(home: AggregatorHome) -> None:
    run_in(home, "paused")
    assert "paused" in ask(home, "watch", "demo", code=1)
