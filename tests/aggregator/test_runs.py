import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aggregator import runs
from aggregator.home import AggregatorHome
from aggregator.runs import (
    RunError,
    hold_run,
    is_held,
    prepare_run,
    read_events,
    read_plan,
    read_run_contract,
    start_run,
    wait_for_sites,
    watch_run,
)
from aggregator.superlink import Node
from shared.contract import PriorSource, RunContract

CONTRACT = RunContract(name="demo", seed=3)


@pytest.fixture
def home(tmp_path: Path) -> AggregatorHome:
    return AggregatorHome(tmp_path)


class FakeLink:
    """A SuperLink whose sites come online one a look."""

    def __init__(self) -> None:
        self.looks = 0
        self.ended = False
        self.started: list[dict[str, str]] = []
        self.stopped: list[int] = []

    def nodes(self) -> list[Node]:
        self.looks += 1
        return [Node(n, f"site-{n}", b"", online=n < self.looks) for n in range(3)]

    def has_ended(self, run_id: int) -> bool:
        return self.ended

    def stop(self, run_id: int) -> None:
        self.stopped.append(run_id)

    def start(self, *, bundle: bytes, digest: str, config: dict[str, str]) -> int:
        self.started.append(config)
        return 40 + len(self.started)


def prepared(home: AggregatorHome) -> Path:
    run = prepare_run(home, CONTRACT, sites=["b", "a"], public=None)
    (run / "flower-run").write_text("40")
    return run


def test_a_run_is_named_by_its_contract(home: AggregatorHome) -> None:
    run = prepared(home)
    assert run.name == CONTRACT.digest()[:16]
    assert read_run_contract(run) == CONTRACT
    assert read_plan(run).sites == ("a", "b")


def test_the_first_plan_holds(home: AggregatorHome) -> None:
    run = prepared(home)
    assert prepare_run(home, CONTRACT, sites=[], public=None) == run
    assert prepare_run(home, CONTRACT, sites=["a", "b"], public=None) == run
    with pytest.raises(RunError, match="with sites a, b"):
        prepare_run(home, CONTRACT, sites=["a"], public=None)


def test_a_run_needs_sites_and_the_public_prior_its_volumes(home: AggregatorHome) -> None:
    with pytest.raises(RunError, match="site add"):
        prepare_run(home, CONTRACT, sites=[], public=None)
    with pytest.raises(RunError, match="--public"):
        prepare_run(
            home,
            CONTRACT.model_copy(update={"prior": PriorSource(kind="public")}),
            sites=["a"],
            public=None,
        )


def test_a_damaged_or_foreign_run_is_named(home: AggregatorHome) -> None:
    run = prepared(home)
    other = RunContract(name="demo", seed=4)
    (run / "contract.json").write_text(other.model_dump_json())
    with pytest.raises(RunError, match="not the contract of this run"):
        read_run_contract(run)
    (run / "plan.json").write_text("{")
    with pytest.raises(RunError, match=r"plan\.json"):
        read_plan(run)


def test_one_process_holds_a_run_and_its_death_lets_go(home: AggregatorHome) -> None:
    run = prepared(home)
    assert not is_held(run)
    code = (
        "import sys, time; from pathlib import Path; from aggregator.runs import hold_run\n"
        "with hold_run(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_held(run)
        with pytest.raises(RunError, match="another process"), hold_run(run, within_s=0.2):
            pass
        holder.kill()
    assert not is_held(run)
    with hold_run(run):
        assert is_held(run)


def test_sites_are_waited_for_and_missing_ones_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    sites = ["site-0", "site-1", "site-2"]
    missing = list(wait_for_sites(FakeLink(), sites, timeout_s=60))  # type: ignore[arg-type]
    assert missing == [("site-1", "site-2"), ("site-2",), ()]
    with pytest.raises(RunError, match=r"site-1, site-2"):
        list(wait_for_sites(FakeLink(), sites, timeout_s=0))  # type: ignore[arg-type]


def test_launching_again_stops_the_dead_attempt_and_leaves_a_live_one(home: AggregatorHome) -> None:
    run, link = prepared(home), FakeLink()
    assert start_run(link, run)  # type: ignore[arg-type]
    assert link.started == [{"run": run.name}]
    with hold_run(run):
        assert not start_run(link, run)  # type: ignore[arg-type]
    assert start_run(link, run)  # type: ignore[arg-type]
    assert link.stopped == [40, 41]
    link.ended = True
    assert start_run(link, run)  # type: ignore[arg-type]
    assert link.stopped == [40, 41]
    assert len(link.started) == 3


def test_half_lines_are_left_for_later(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    assert read_events(tmp_path, from_byte=0) == ([], 0)
    file.write_bytes(b'{"round": 1}\n{"rou')
    events, position = read_events(tmp_path, from_byte=0)
    assert events == [{"round": 1}]
    file.write_bytes(b'{"round": 1}\n{"rou\n{"round": 2}\n')
    assert read_events(tmp_path, from_byte=position)[0] == [{"round": 2}]


def worker(run: Path, act: Callable[[], None]) -> threading.Thread:
    """A ServerApp's life: takes the lock, acts, lets go."""

    def live() -> None:
        with hold_run(run):
            time.sleep(0.2)
            act()

    thread = threading.Thread(target=live)
    thread.start()
    return thread


def write_event(run: Path, phase: str, message: str = "") -> None:
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps({"phase": phase, "message": message}) + "\n")


def watch(run: Path) -> list[object]:
    size = (run / "events.jsonl").stat().st_size if (run / "events.jsonl").exists() else 0
    return [event["phase"] for event in watch_run(run, FakeLink(), from_byte=size)]  # type: ignore[arg-type]


def test_watching_ends_when_the_pairs_are_there(home: AggregatorHome) -> None:
    run = prepared(home)
    write_event(run, "failed", "of an earlier attempt")

    def act() -> None:
        write_event(run, "probes")
        (run / "pairs.safetensors").touch()
        (run / "result.json").touch()
        write_event(run, "done")

    thread = worker(run, act)
    time.sleep(0.1)
    assert watch(run) == ["probes", "done"]
    thread.join()


def test_a_failure_is_told_with_its_message(home: AggregatorHome) -> None:
    run = prepared(home)
    thread = worker(run, lambda: write_event(run, "failed", "too few summaries"))
    with pytest.raises(RunError, match="too few summaries"):
        watch(run)
    thread.join()


def test_a_killed_serverapp_is_told_apart_from_a_failure(home: AggregatorHome) -> None:
    run = prepared(home)
    thread = worker(run, lambda: write_event(run, "probes"))
    with pytest.raises(RunError, match="launch the same contract again"):
        watch(run)
    thread.join()


def test_a_run_that_never_starts_is_told(
    home: AggregatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "START_WITHIN_S", 0.5)
    monkeypatch.setattr(runs, "ASK_S", 0.1)
    run = prepared(home)
    with pytest.raises(RunError, match="did not start"):
        watch(run)
