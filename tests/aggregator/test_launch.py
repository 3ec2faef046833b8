import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aggregator import launch
from aggregator.enrolment import EnrolmentError
from aggregator.home import AggregatorHome
from aggregator.launch import Display, describe, describe_eta, with_members
from aggregator.lifecycle import RunState, transition
from aggregator.runs import RunError, hold_run, prepare_run, read_plan
from shared.contract import RunContract
from shared.enrolment import Enrolment


def test_an_event_says_phase_round_and_message() -> None:
    event = {"phase": "probes", "round": 2, "rounds": 6, "message": "3 summaries banked"}
    assert describe(event) == "probes round 2/6: 3 summaries banked"
    assert describe({"phase": "public", "rounds": 0}) == "public"


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (0, "about 0:00 left"), (125.4, "about 2:05 left")]
)
def test_eta(seconds: float | None, text: str) -> None:
    assert describe_eta(seconds) == text


def event(done: int, round: int = 1) -> dict[str, object]:
    return {"phase": "distil", "round": round, "rounds": 2, "done": done, "total": 9, "eta_s": 4}


def test_without_a_terminal_a_line_is_written_when_something_changed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    display = Display(quiet=False)
    with display:
        display.say("waiting for site-a")
        display.say("waiting for site-a")
        for done in range(9):
            display.show(event(done))
        display.show(event(0, round=2))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "waiting for site-a",
        "distil round 1/2 0/9 about 0:04 left",
        "distil round 2/2 0/9 about 0:04 left",
    ]


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(quiet=True)
    with display:
        display.say("submitted")
        display.show(event(1))
    assert capsys.readouterr() == ("", "")


def enrolled(*names: str) -> list[Enrolment]:
    return [
        Enrolment(name=name, flower_public_key="key", signing_public_key=f"{number}" * 64)
        for number, name in enumerate(names, start=1)
    ]


FEDERATION = RunContract(name="x", granularity="federation")


def test_a_secure_sum_has_the_sites_as_members_and_so_another_digest_with_others() -> None:
    filled = with_members(FEDERATION, enrolled("c", "b", "a"))
    assert [member.name for member in filled.members] == ["a", "b", "c"]
    assert with_members(filled, enrolled("c", "b", "a")) == filled, "what is filled in fits"
    assert filled.foundation() == FEDERATION.digest() != filled.digest()
    assert with_members(FEDERATION, enrolled("c", "b", "d")).digest() != filled.digest()
    with pytest.raises(RunError, match="names other members"):
        with_members(filled, enrolled("c", "b", "d"))
    clear = RunContract(name="x")
    assert with_members(clear, enrolled("a")) is clear


def test_a_secure_sum_of_two_or_without_a_key_is_not_launched() -> None:
    with pytest.raises(RunError, match="needs 3 sites, these are: a, b"):
        with_members(FEDERATION, enrolled("a", "b"))
    sites = [*enrolled("a", "b"), Enrolment(name="old", flower_public_key="key")]
    with pytest.raises(EnrolmentError, match="none is known of old"):
        with_members(FEDERATION, sites)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = prepare_run(AggregatorHome(tmp_path), RunContract(name="x"), sites=["a"], public=None)
    left = RunState(state="running", since=time.time())
    (folder / "state.json").write_text(left.model_dump_json())
    (folder / "events.jsonl").touch()
    return folder


def serverapp(run: Path, work: Callable[[], None]) -> threading.Thread:
    """Holds the run while it works, as a ServerApp does, and is killed where it does no more."""

    def live() -> None:
        with hold_run(run):
            with (run / "events.jsonl").open("a") as events:
                events.write(json.dumps({"phase": "probes", "round": 1}) + "\n")
            time.sleep(0.6)
            work()

    thread = threading.Thread(target=live)
    thread.start()
    time.sleep(0.1)
    return thread


def watch(run: Path) -> None:
    launch._watch(None, run, from_byte=0, display=Display(quiet=True))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("paused", "the run is paused: 1 of 2 sites; `aggregator run resume"),
        ("aborted", "the run is aborted: 1 of 2 sites"),
    ],
)
def test_who_launched_is_told_why_a_run_stands(run: Path, state: str, told: str) -> None:
    at_work = serverapp(run, lambda: transition(run, state, reason="1 of 2 sites") and None)  # type: ignore[arg-type, func-returns-value]
    with pytest.raises(RunError, match=told):
        watch(run)
    at_work.join()


def test_watching_outlives_a_serverapp_that_is_killed_and_begun_again(run: Path) -> None:
    first = serverapp(run, lambda: None)

    def goes_on() -> None:
        first.join()
        time.sleep(1)
        serverapp(run, lambda: [(run / n).touch() for n in ("result.json", "pairs.safetensors")])  # type: ignore[arg-type, return-value]

    supervisor = threading.Thread(target=goes_on)
    supervisor.start()
    watch(run)
    supervisor.join()


@pytest.mark.parametrize("state", ["paused", "failed"])
def test_a_run_that_stands_while_hospitals_judge_is_not_taken_for_finished(
    run: Path, state: str
) -> None:
    for name in ("result.json", "pairs.safetensors"):
        (run / name).touch()
    at_work = serverapp(run, lambda: transition(run, state, reason="why") and None)  # type: ignore[arg-type, func-returns-value]
    with pytest.raises(RunError, match=f"the run (is )?{state}: why"):
        watch(run)
    at_work.join()


def test_an_interrupted_run_that_nobody_goes_on_with_is_told(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "RESUMED_WITHIN_S", 0.2)
    at_work = serverapp(run, lambda: None)
    with pytest.raises(RunError, match="was interrupted: launch the same contract again"):
        watch(run)
    at_work.join()


def test_terms_are_kept_in_the_plan_and_may_change(run: Path) -> None:
    home, contract = AggregatorHome(run.parent.parent), RunContract(name="x")

    def plan(**terms: float | str) -> tuple[float, float, str]:
        kept = read_plan(prepare_run(home, contract, sites=[], public=None, terms=terms))
        return kept.quorum, kept.patience_s, kept.below_quorum

    assert plan() == (0.5, 100.0, "pause")
    assert plan(quorum=0.9) == (0.9, 100.0, "pause")
    assert plan(patience_s=5, below_quorum="fail") == (0.9, 5.0, "fail")
    with pytest.raises(RunError, match="quorum: Input should be less"):
        plan(quorum=2)
