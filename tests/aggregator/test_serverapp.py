import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.error import Error
from flwr.supercore.task_identity import TaskIdentity

from aggregator import serverapp
from aggregator.home import HOME_VARIABLE, AggregatorHome
from aggregator.lifecycle import Interrupted, Steering, Wanted, read_state, request
from aggregator.progress import Journal, SiteNews
from aggregator.runs import is_held, prepare_run, read_plan
from aggregator.serverapp import GridExchange
from shared.contract import RunContract

Answer = Callable[[str, bytes, int], bytes | Error | None]
"""(site, payload, how often it was asked) -> payload, Flower's error, or nothing yet."""


class FakeGrid:
    """Nodes that answer at the next pull; ``online`` may change between looks."""

    def __init__(self, answer: Answer, online: list[list[str]]) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
        self._answer = answer
        self._online = online
        self._names = sorted({name for names in online for name in names})
        self._waiting: dict[str, Message] = {}
        self.asked: dict[str, int] = {}
        self.pushed: list[Message] = []

    def get_nodes(self) -> list[SimpleNamespace]:
        names = self._online.pop(0) if len(self._online) > 1 else self._online[0]
        return [SimpleNamespace(name=n, node_id=self._names.index(n) + 10) for n in names]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"m{len(self.pushed)}"
            self.pushed.append(message)
            self._waiting[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = []
        for message_id in message_ids:
            message = self._waiting[message_id]
            site = self._names[message.metadata.dst_node_id - 10]
            self.asked[site] = self.asked.get(site, 0) + 1
            given = self._answer(site, message.content["request"]["payload"], self.asked[site])
            if isinstance(given, Error):
                replies.append(Message(given, reply_to=message))
            elif given is not None:
                content = RecordDict({"answer": ConfigRecord({"payload": given})})
                replies.append(Message(content, reply_to=message))
            if given is not None:
                del self._waiting[message_id]
        return replies


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serverapp, "POLL_S", 0.001)
    monkeypatch.setattr(serverapp, "ONLINE_POLL_S", 0.01)
    monkeypatch.setattr(serverapp, "PATIENCE_S", 0.2)


def echo(site: str, payload: bytes, _times: int) -> bytes:
    return site.encode() + b":" + payload


def test_every_site_is_asked_once_and_answers_are_told_apart() -> None:
    grid = FakeGrid(echo, [["a", "b", "c"]])
    exchange = GridExchange(grid, timeout_s=5)
    for round in (1, 2, 3):
        answers = exchange(b"%d" % round, round, ["a", "b", "c"])
        assert answers == {"a": b"a:%d" % round, "b": b"b:%d" % round, "c": b"c:%d" % round}
    assert len(grid.pushed) == 9
    assert {m.metadata.message_type for m in grid.pushed} == {"query.summarise"}
    assert [m.metadata.group_id for m in grid.pushed] == ["1"] * 3 + ["2"] * 3 + ["3"] * 3
    assert all(m.metadata.ttl > 5 for m in grid.pushed), "who is late is told so by us, not Flower"


def test_a_site_that_is_revoked_in_the_middle_of_a_round_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serverapp, "PATIENCE_S", 60.0)
    gone: set[str] = set()

    def revoked_while_it_computes(site: str, payload: bytes, _times: int) -> bytes | Error:
        if site == "b":
            gone.add("b")
            return Error(code=5)
        return echo(site, payload, 1)

    grid = FakeGrid(revoked_while_it_computes, [["a", "b"], ["a"]])
    exchange = GridExchange(grid, timeout_s=60, absent=lambda: gone)
    began = time.monotonic()
    for round in (1, 2):
        assert exchange(b"x", round, ["a", "b"]) == {"a": b"a:x"}
    assert time.monotonic() - began < 10, "the patience for a site that is offline is a minute"


def test_a_site_that_is_not_of_the_run_is_never_asked() -> None:
    grid = FakeGrid(echo, [["a", "stranger"]])
    assert GridExchange(grid, timeout_s=5)(b"x", 1, ["a"]) == {"a": b"a:x"}
    assert len(grid.pushed) == 1


def test_a_late_site_is_waited_for() -> None:
    grid = FakeGrid(echo, [["a"], ["a"], ["a", "b"]])
    assert set(GridExchange(grid, timeout_s=5)(b"x", 1, ["a", "b"])) == {"a", "b"}


def test_an_absent_site_costs_patience_once() -> None:
    grid = FakeGrid(echo, [["a"]])
    exchange = GridExchange(grid, timeout_s=5)
    start = time.monotonic()
    assert set(exchange(b"x", 1, ["a", "b"])) == {"a"}
    first = time.monotonic() - start
    # Nor does an exchange without it, of the same round, let it be waited for again.
    start = time.monotonic()
    assert set(exchange(b"z", 1, ["a"])) == {"a"}
    assert set(exchange(b"y", 2, ["a", "b"])) == {"a"}
    assert first >= 0.2 > time.monotonic() - start


def test_a_site_that_was_not_asked_is_not_given_up() -> None:
    grid = FakeGrid(echo, [["a", "b"]])
    exchange = GridExchange(grid, timeout_s=5)
    assert set(exchange(b"x", 1, ["a"])) == {"a"}
    grid._online = [["a"], ["a"], ["a", "b"]]
    assert set(exchange(b"y", 1, ["a", "b"])) == {"a", "b"}, "it is waited for"


def test_a_lost_node_is_asked_again_with_the_same_bytes() -> None:
    def answer(site: str, payload: bytes, times: int) -> bytes | Error:
        return Error(code=5, reason="gone") if times == 1 else echo(site, payload, times)

    grid = FakeGrid(answer, [["a"]])
    assert GridExchange(grid, timeout_s=5)(b"x", 1, ["a"]) == {"a": b"a:x"}
    first, second = grid.pushed
    assert first.content["request"]["payload"] == second.content["request"]["payload"]


def test_errors_without_end_are_given_up() -> None:
    grid = FakeGrid(lambda *_: Error(code=1, reason=""), [["a"]])
    assert GridExchange(grid, timeout_s=5)(b"x", 1, ["a"]) == {}
    assert len(grid.pushed) == serverapp.TRIES


def test_a_site_that_never_answers_costs_the_deadline() -> None:
    grid = FakeGrid(lambda site, payload, _: b"ok" if site == "a" else None, [["a", "b"]])
    start = time.monotonic()
    assert GridExchange(grid, timeout_s=0.3)(b"x", 1, ["a", "b"]) == {"a": b"ok"}
    assert 0.3 <= time.monotonic() - start < 3


def test_a_repeated_answer_and_one_to_an_earlier_round_change_nothing() -> None:
    grid = FakeGrid(echo, [["a", "b"]])
    exchange = GridExchange(grid, timeout_s=5)
    late: list[Message] = []
    pull = grid.pull_messages

    def twice(message_ids: Iterable[str]) -> list[Message]:
        replies = pull(message_ids)
        late.extend(replies)
        return [*late, *replies]

    grid.pull_messages = twice  # type: ignore[method-assign]
    for round in (b"1", b"2", b"3"):
        assert exchange(round, int(round), ["a", "b"]) == {"a": b"a:" + round, "b": b"b:" + round}
    assert len(late) == 6


def test_it_is_said_whom_a_round_waits_for_how_long_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aggregator.progress.AT_LEAST_EVERY_S", 0.05)
    said: list[dict[str, SiteNews]] = []
    grid = FakeGrid(lambda site, payload, _: payload if site == "a" else None, [["a", "b"]])
    journal = Journal(tmp_path / "events.jsonl", rounds=3)
    journal.begin_round(1, kind="gradients", remaining={})

    def hear(news: dict[str, SiteNews]) -> None:
        said.append(dict(news))
        journal.sites(news)

    exchange = GridExchange(grid, timeout_s=0.3, patience_s=0.1, on_news=hear)  # type: ignore[arg-type]
    assert set(exchange(b"x", 1, ["a", "b", "c"])) == {"a"}
    assert {site: one["state"] for site, one in said[0].items()} == {
        "a": "answered",
        "b": "computing",
        "c": "offline",
    }
    last = {site: one for news in said for site, one in news.items()}
    assert (last["b"]["state"], last["c"]["state"]) == ("late", "offline")
    assert (
        "not answered within" in last["b"]["reason"] and "c is not connected" in last["c"]["reason"]
    )
    assert last["b"]["waited_s"] >= 0.3 > last["c"]["waited_s"] >= 0.1
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert len(events) >= 4, "every few seconds, though nothing has changed"
    assert events[-1]["sites"]["b"]["state"] == "late"
    assert all(event["round"] == 1 and "waited" in event["message"] for event in events[:1])


def test_a_round_is_left_where_that_is_wanted() -> None:
    def no_more() -> None:
        raise Interrupted

    exchange = GridExchange(FakeGrid(lambda *_: None, [["a"]]), timeout_s=60, on_look=no_more)
    with pytest.raises(Interrupted):
        exchange(b"x", 1, ["a"])


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"answer": ConfigRecord({"other": b"x"})}),
        RecordDict({"answer": ConfigRecord({"payload": "text"})}),
    ],
)
def test_an_answer_of_another_shape_is_no_message(content: RecordDict) -> None:
    grid = FakeGrid(echo, [["a"]])
    grid.pull_messages = lambda ids: [  # type: ignore[method-assign]
        Message(content, reply_to=grid._waiting.pop(id)) for id in ids
    ]
    assert GridExchange(grid, timeout_s=5)(b"x", 1, ["a"]) == {"a": b""}


def run_app(run: Path, monkeypatch: pytest.MonkeyPatch, name: str | None = None) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(run.parent.parent))
    context = Context(1, 0, {}, RecordDict(), {"run": name or run.name})
    serverapp.app(FakeGrid(echo, [["a"]]), context)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    contract = RunContract(name="demo")
    return prepare_run(AggregatorHome(tmp_path), contract, sites=["a"], public=None)


def last_event(run: Path) -> dict[str, object]:
    event: dict[str, object] = json.loads((run / "events.jsonl").read_text().splitlines()[-1])
    return event


def test_the_round_loop_gets_the_plan_and_the_lock(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def federate(**given: object) -> None:
        seen.update(given, held=is_held(run))

    monkeypatch.setattr("aggregator.federation.federate", federate)
    run_app(run, monkeypatch)
    assert seen["run"] == run
    assert seen["sites"] == ("a",)
    assert seen["held"]
    assert not is_held(run)


def test_a_failure_of_the_federation_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aggregator.federation import FederationError

    def federate(**_: object) -> None:
        raise FederationError("round 2: 1 of 3 sites gave a usable summary")

    monkeypatch.setattr("aggregator.federation.federate", federate)
    with pytest.raises(RuntimeError, match=r"events\.jsonl"):
        run_app(run, monkeypatch)
    assert last_event(run)["phase"] == "failed"
    assert "1 of 3 sites" in str(last_event(run)["message"])


def test_the_text_of_any_other_error_stays_in_the_run(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def federate(**_: object) -> None:
        raise ValueError("CANARY")

    monkeypatch.setattr("aggregator.federation.federate", federate)
    with pytest.raises(RuntimeError) as raised:
        run_app(run, monkeypatch)
    assert "CANARY" not in str(raised.value)
    assert "CANARY" not in (run / "events.jsonl").read_text()
    assert "CANARY" in (run / "error.log").read_text()


def test_a_run_name_is_no_path(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="not the name of a run"):
        run_app(run, monkeypatch, name="../../../etc")


def test_a_run_is_finished_when_its_work_is_done(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during = []
    monkeypatch.setattr(
        "aggregator.federation.federate", lambda **_: during.append(read_state(run).state)
    )
    run_app(run, monkeypatch)
    assert during == ["running"]
    assert read_state(run).state == "finished"


@pytest.mark.parametrize("then", ["pause", "fail"])
def test_too_few_answers_pause_a_run_or_fail_it_as_planned(
    run: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    from aggregator.federation import BelowQuorum

    plan = read_plan(run).model_copy(update={"below_quorum": then, "quorum": 0.7})
    (run / "plan.json").write_text(plan.model_dump_json())

    def federate(**given: object) -> None:
        assert given["quorum"] == 0.7
        raise BelowQuorum("round 1: 0 of 1 sites", missing=["a"])

    monkeypatch.setattr("aggregator.federation.federate", federate)
    if then == "fail":
        with pytest.raises(RuntimeError):
            run_app(run, monkeypatch)
    else:
        run_app(run, monkeypatch)
    state = read_state(run)
    assert (state.state, state.reason) == (
        "paused" if then == "pause" else "failed",
        "round 1: 0 of 1 sites",
    )
    assert state.missing == (("a",) if then == "pause" else ())
    assert last_event(run)["phase"] == state.state


@pytest.mark.parametrize(
    ("wanted", "state"), [("pause", "paused"), ("stop", "paused"), ("abort", "aborted")]
)
def test_a_run_is_paused_after_the_round_stopped_in_it_or_aborted(
    run: Path, monkeypatch: pytest.MonkeyPatch, wanted: Wanted, state: str
) -> None:
    def federate(*, steering: Steering, **_: object) -> None:
        request(run, wanted)
        if wanted == "pause":
            steering.check()
            steering.round_ended(1, last=False)
        else:
            steering.check()
        raise AssertionError("it went on")

    monkeypatch.setattr("aggregator.federation.federate", federate)
    run_app(run, monkeypatch)
    found = read_state(run)
    assert (found.state, found.wanted, found.round) == (state, wanted, int(wanted == "pause"))
    assert last_event(run)["phase"] == state


def test_a_failure_is_the_state_and_going_on_is_possible(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def federate(**_: object) -> None:
        raise ValueError("CANARY")

    monkeypatch.setattr("aggregator.federation.federate", federate)
    with pytest.raises(RuntimeError):
        run_app(run, monkeypatch)
    state = read_state(run)
    assert state.state == "failed" and "error.log" in state.reason
    monkeypatch.setattr("aggregator.federation.federate", lambda **_: None)
    run_app(run, monkeypatch)
    assert read_state(run).state == "finished"
