import itertools
import threading
import time
from pathlib import Path

import pytest

from aggregator import resumption
from aggregator.home import AggregatorHome
from aggregator.hospital_table import EVALUATION, Judgement, SiteFigures
from aggregator.lifecycle import RunState, State, Wanted, read_state
from aggregator.resumption import SUBMITTED_S, Attempts, go_on, resume_runs, waiting_runs
from aggregator.runs import hold_run, prepare_run
from aggregator.superlink import Node, SuperLinkError
from shared.contract import Evaluation, RunContract

SITES = ("a", "b", "c")


class Link:
    """A SuperLink with the sites that are online, which starts what it is given."""

    def __init__(self, *online: str) -> None:
        self.online, self.started = set(online), list[str]()

    def nodes(self) -> list[Node]:
        return [Node(n, name, b"", online=name in self.online) for n, name in enumerate(SITES)]

    def has_ended(self, run_id: int) -> bool:
        return True

    def start(self, *, bundle: bytes, digest: str, config: dict[str, str]) -> int:
        self.started.append(config["run"])
        return len(self.started)


@pytest.fixture
def home(tmp_path: Path) -> AggregatorHome:
    return AggregatorHome(tmp_path)


def run_in(
    home: AggregatorHome,
    state: State,
    *,
    wanted: Wanted = "run",
    missing: tuple[str, ...] = (),
    round: int = 0,
) -> Path:
    run = prepare_run(home, RunContract(name="demo"), sites=SITES, public=None)
    left = RunState(state=state, since=time.time(), wanted=wanted, missing=missing, round=round)
    (run / "state.json").write_text(left.model_dump_json())
    return run


def resume(home: AggregatorHome, link: Link, attempts: dict[str, Attempts], at: float) -> list[str]:
    return resume_runs(home, link, attempts=attempts, clock=lambda: at)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", ["running", "stopping"])
def test_a_run_whose_serverapp_was_killed_goes_on(home: AggregatorHome, state: State) -> None:
    run, link = run_in(home, state), Link(*SITES)
    with hold_run(run):
        assert waiting_runs(home) == []
    assert resume(home, link, {}, 0) == [run.name] == link.started
    assert read_state(run).state == "submitted"
    assert resume(home, link, {}, 0) == [], "it is on its way"


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        ("running", "pause"),
        ("running", "abort"),
        ("paused", "run"),
        ("paused", "pause"),
        ("failed", "run"),
        ("finished", "run"),
        ("aborted", "run"),
        ("prepared", "run"),
    ],
)
def test_what_a_person_has_to_decide_is_left_alone(
    home: AggregatorHome, state: State, wanted: Wanted
) -> None:
    run_in(home, state, wanted=wanted)
    assert resume(home, Link(*SITES), {}, 0) == []


def test_a_run_killed_while_hospitals_judge_goes_on_and_not_once_they_have(
    home: AggregatorHome,
) -> None:
    judged = RunContract(name="judged", evaluation=Evaluation(sites=True))
    run = prepare_run(home, judged, sites=SITES, public=None)
    left = RunState(state="running", since=time.time(), round=9, rounds=9)
    for name in ("result.json", "pairs.safetensors"):
        (run / name).touch()
    figures = SiteFigures(psnr_db=(30.0,), ssim=(0.9,), patients_at_least=5)
    heard = Judgement(
        contract_digest=judged.digest(),
        pairs_sha256="0" * 64,
        sets=("distilled",),
        seeds=1,
        anchor=False,
        source_ssim=(),
        source_ncc=(),
        asked=SITES,
        figures=dict.fromkeys(SITES, figures),
    )
    silent = heard.model_copy(update={"figures": {"a": figures}})
    for told, goes in ((None, True), (silent, True), (heard, False)):
        (run / "state.json").write_text(left.model_dump_json())
        if told is not None:
            (run / EVALUATION).write_text(told.model_dump_json())
        link = Link(*SITES)
        assert bool(resume(home, link, {}, 0)) is goes
        assert read_state(run).state == ("submitted" if goes else "finished")
    (run / "state.json").write_text(left.model_dump_json())
    (run / EVALUATION).write_text("damaged")
    assert resume(home, Link(*SITES), {}, 0), "who goes on says what is damaged"


def test_a_run_below_quorum_goes_on_when_enough_are_back_and_one_was_missing(
    home: AggregatorHome,
) -> None:
    run = run_in(home, "paused", missing=("b", "c"))
    link = Link("a")
    for online, goes in (({"a"}, False), ({"b"}, False), ({"a", "b"}, True)):
        link.online = online
        assert bool(resume(home, link, {}, 0)) is goes
    run_in(home, "paused", missing=("b",))
    link.online = {"a", "c"}
    assert not resume(home, link, {}, 0), "the same would answer again"
    assert link.started == [run.name]


def test_a_run_that_ends_again_and_again_is_tried_ever_later_and_anew_after_a_round(
    home: AggregatorHome,
) -> None:
    link, attempts, at, tried = Link(*SITES), dict[str, Attempts](), 0.0, list[float]()
    while at < 1000:
        run_in(home, "running", round=0)
        if resume(home, link, attempts, at):
            tried.append(at)
        at += 1
    gaps = [after - before for before, after in itertools.pairwise(tried)]
    assert max(gaps[:2]) <= 3 and gaps == sorted(gaps) and gaps[-1] >= 100
    run = run_in(home, "running", round=1)
    assert resume(home, link, attempts, at)
    for name in ("networks.safetensors", EVALUATION):
        run_in(home, "running", round=1)
        assert not resume(home, link, attempts, at)
        (run / name).write_text("its judgement has got further")
        assert resume(home, link, attempts, at)


@pytest.mark.parametrize(("ended", "seconds"), [(True, 60), (False, 60), (True, 1)])
def test_a_run_that_flower_lost_before_it_began_is_submitted_again(
    home: AggregatorHome, ended: bool, seconds: float
) -> None:
    run, link = run_in(home, "submitted"), Link(*SITES)
    state = read_state(run).model_copy(update={"since": time.time() - seconds})
    (run / "state.json").write_text(state.model_dump_json())
    (run / "flower-run").write_text("7")
    link.has_ended = lambda run_id: ended and run_id == 7  # type: ignore[method-assign]
    goes = ended and seconds > SUBMITTED_S
    assert bool(resume(home, link, {}, 0)) is goes is bool(link.started)
    with hold_run(run):
        assert not resume(home, link, {}, 9), "it has begun"


def test_going_on_survives_a_superlink_that_is_down(
    home: AggregatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(home, "running")
    (home.root / "damaged").mkdir()
    stop, tries, link = threading.Event(), list[int](), Link(*SITES)

    class Connection:
        def __enter__(self) -> Link:
            tries.append(1)
            if len(tries) < 3:
                raise SuperLinkError("down")
            return link

        def __exit__(self, *_: object) -> None: ...

    def tell(name: str) -> None:
        assert name == run.name
        stop.set()

    monkeypatch.setattr(resumption, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(resumption, "superlink", lambda _: Connection())
    go_on(home, stop, tell)
    assert len(tries) == 3 and link.started == [run.name]
