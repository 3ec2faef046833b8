from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aggregator import dry_run
from aggregator.costs import cost_of
from aggregator.dry_run import VERDICTS, ask_sites, keep_verdicts, told
from aggregator.heard import keep_heard, read_heard
from aggregator.home import AggregatorHome, create_home
from aggregator.runs import RunError, hold_run, read_plan, read_run_contract
from shared.contract import RunContract
from shared.messages import (
    DryRunHeader,
    DryRunQueryHeader,
    Message,
    RefusalCode,
    decode,
    encode,
    refusal,
)
from shared.standing import BudgetLeft, Standing, left_in_words, time_in_words

CONTRACT = RunContract(name="x")
NOTHING = dict.fromkeys(
    ("code", "incident", "patients_at_least", "version", "policy", "budget", "seconds")
)
STANDING = Standing(
    version="0.1.0",
    policy="5" * 64,
    budget=BudgetLeft(gradients=500, requests_today=987, epsilon=1.25),
    seconds=170.0,
)


def answers(payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
    query = decode(payload).header
    assert isinstance(query, DryRunQueryHeader)
    said: dict[str, Any] = {"contract_digest": query.contract_digest, "patients_at_least": 20}
    no = {"code": RefusalCode.POLICY, "incident": "0123456789ab"}
    plain = DryRunHeader(site="earlier", **said)
    malformed = refusal(site="earlier", code=RefusalCode.MALFORMED, incident="2" * 12)
    every = {
        "yes": encode(Message(header=DryRunHeader(site="yes", **said, standing=STANDING))),
        "earlier": encode(malformed if query.standing else Message(header=plain)),
        "no": encode(Message(header=DryRunHeader(site="no", **said, **no))),
        "broken": b"nothing",
        "old": encode(refusal(site="old", code=RefusalCode.UNKNOWN_KIND, incident="1" * 12)),
        "liar": encode(Message(header=DryRunHeader(site="yes", **said))),
    }
    return {site: every[site] for site in sites if site in every}


def test_each_site_is_told_apart() -> None:
    verdicts = ask_sites(CONTRACT, ["yes", "no", "broken", "old", "liar", "silent"], answers)
    assert [one["verdict"] for one in verdicts] == ["accept", *["refuse"] * 4, "no answer"]
    told_by_yes = STANDING.model_dump(mode="json")
    assert verdicts[0] == {
        "site": "yes",
        "verdict": "accept",
        "code": None,
        "incident": None,
        "patients_at_least": 20,
        **told_by_yes,
    }
    assert (verdicts[1]["code"], verdicts[1]["incident"]) == ("policy", "0123456789ab")
    assert [one["code"] for one in verdicts[2:]] == [
        "not a message of ours",
        f"refused: unknown-kind (incident {'1' * 12})",
        "site is not that of the request",
        None,
    ]
    lines = told(verdicts).splitlines()
    assert lines[0].split() == [
        *("site", "verdict", "why", "patients", "version", "budget", "left", "would", "cost", "it")
    ]
    shown = "at least 20  0.1.0     at least 500 gradients, 987 answers today, ε 1.25"
    assert lines[1].split() == ["yes", "accept", *shown.split()]
    assert lines[2].endswith("at least 20  not told  not told")
    assert "policy (incident 0123456789ab)" in lines[2]
    assert "patients with real pairs" in told(verdicts, real_pairs=True).splitlines()[0]


def test_a_site_of_an_earlier_version_is_asked_as_before() -> None:
    asked: list[tuple[bool, tuple[str, ...]]] = []

    def exchange(payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
        header = decode(payload).header
        assert isinstance(header, DryRunQueryHeader)
        asked.append((header.standing, tuple(sites)))
        return answers(payload, round, sites)

    verdicts = ask_sites(CONTRACT, ["earlier", "yes", "old"], exchange)
    assert asked == [(True, ("earlier", "yes", "old")), (False, ("earlier",))]
    assert verdicts[0] == {
        "site": "earlier",
        "verdict": "accept",
        **NOTHING,
        "patients_at_least": 20,
    }
    cost = cost_of(CONTRACT).model_dump()
    (row,) = told([{**verdicts[0], "cost": cost}]).splitlines()[1:]
    assert row.endswith("up, time of computing not told")


def test_what_a_site_says_is_kept_until_it_says_something_else(tmp_path: Path) -> None:
    home = create_home(tmp_path / "home", {})
    assert read_heard(home) == {}
    keep_heard(home, CONTRACT, ask_sites(CONTRACT, ["yes", "earlier", "silent", "old"], answers))
    heard = read_heard(home)
    assert sorted(heard) == ["earlier", "old", "yes"]
    yes = heard["yes"]
    assert (yes.verdict, yes.name, yes.contract) == ("accept", "x", CONTRACT.digest())
    assert Standing.model_validate(yes.model_dump(include=set(Standing.model_fields))) == STANDING
    assert (heard["earlier"].version, heard["earlier"].patients_at_least) == (None, 20)
    assert heard["old"].code == f"refused: unknown-kind (incident {'1' * 12})"
    keep_heard(home, CONTRACT, [{"site": "yes", "verdict": "no answer", **NOTHING}])
    assert read_heard(home) == heard, "no answer changes nothing"
    keep_heard(home, CONTRACT, [{"site": "yes", "verdict": "refuse", **NOTHING, "code": "policy"}])
    assert (read_heard(home)["yes"].code, read_heard(home)["yes"].version) == ("policy", None)
    (home.root / "heard" / "yes.json").write_bytes(b"{")
    assert sorted(read_heard(home)) == ["earlier", "old"], "what is damaged was never said"


def test_times_and_budgets_are_told_in_words() -> None:
    times = {0.2: "1 s", 89.0: "89 s", 170.0: "3 min", 5300.0: "88 min", 9000.0: "2.5 h"}
    for seconds, words in {**times, 90_000.0: "25 h"}.items():
        assert time_in_words(seconds) == f"about {words}"
    assert left_in_words(BudgetLeft()) == "no limit"
    assert (
        left_in_words(BudgetLeft(gradients=0, requests_today=0)) == "no gradient, 0 answers today"
    )


def link_to(*online: str) -> SimpleNamespace:
    nodes = [SimpleNamespace(name=name, online=True) for name in online]
    return SimpleNamespace(nodes=lambda: nodes, __enter__=None)


def test_those_online_are_asked_and_the_others_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import nullcontext

    home = create_home(tmp_path / "home", {})
    asked: list[tuple[str, ...]] = []

    def start(_link: object, folder: Path) -> bool:
        contract, plan = read_run_contract(folder), read_plan(folder)
        assert not (folder / VERDICTS).exists(), "an earlier answer is not taken for this one"
        asked.append(plan.sites)
        keep_verdicts(folder, ask_sites(contract, plan.sites, answers))
        return True

    records = [SimpleNamespace(name=name) for name in ("no", "off", "yes")]
    monkeypatch.setattr(dry_run, "enrolled_sites", lambda _: records)
    monkeypatch.setattr(dry_run, "superlink", lambda _: nullcontext(link_to("yes", "no")))
    monkeypatch.setattr(dry_run, "start_run", start)
    for _ in range(2):
        verdicts = dry_run.dry_run(home, CONTRACT, sites=[])
        assert [(one["site"], one["verdict"]) for one in verdicts] == [
            ("no", "refuse"),
            ("off", "offline"),
            ("yes", "accept"),
        ]
    assert asked == [("no", "yes")] * 2
    assert [one["cost"] for one in verdicts[:2]] == [None, None]
    assert verdicts[2]["cost"] == cost_of(CONTRACT, patients=20, seconds=170.0).model_dump()
    assert sorted(read_heard(home)) == ["no", "yes"]
    releases = CONTRACT.anchor.rounds + CONTRACT.probes.requests * len(CONTRACT.probes.depths)
    shown = f"{CONTRACT.rounds} rounds, {releases} gradient vectors, no differential privacy"
    assert shown in told(verdicts).splitlines()[3]
    assert told(verdicts).splitlines()[3].endswith("up, about 3 min of computing")
    assert dry_run.dry_run(home, CONTRACT, sites=["off"]) == [
        {"site": "off", "verdict": "offline", **NOTHING, "cost": None}
    ]
    with pytest.raises(RunError, match="not enrolled: stranger"):
        dry_run.dry_run(home, CONTRACT, sites=["stranger"])
    assert not home.run_folder(CONTRACT.digest()).exists(), "no run is begun"


class Flower:
    """A SuperLink whose ServerApps end early, each with its reason; the last one asks."""

    def __init__(self, home: AggregatorHome, *reasons: str | None) -> None:
        self.home, self.reasons, self.started = home, list(reasons), 0

    def nodes(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="yes", online=True)]

    def start(self, _link: object, folder: Path) -> bool:
        self.started += 1
        if self.started > len(self.reasons):
            with hold_run(folder):
                contract, plan = read_run_contract(folder), read_plan(folder)
                keep_verdicts(folder, ask_sites(contract, plan.sites, answers))
        return True

    def ending(self, _run: int) -> str | None:
        return self.reasons[self.started - 1]


@pytest.fixture
def flower(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Flower:
    from contextlib import nullcontext

    found = Flower(create_home(tmp_path / "home", {}), *request.param)
    monkeypatch.setattr(dry_run, "ASK_S", 0.02)
    monkeypatch.setattr(dry_run, "POLL_S", 0.01)
    monkeypatch.setattr(dry_run, "enrolled_sites", lambda _: [SimpleNamespace(name="yes")])
    monkeypatch.setattr(dry_run, "superlink", lambda _: nullcontext(found))
    monkeypatch.setattr(dry_run, "start_run", found.start)
    return found


@pytest.mark.parametrize("flower", [["a handshake broke", ""]], indirect=True)
def test_a_serverapp_that_ended_before_it_asked_is_started_again(flower: Flower) -> None:
    (verdict,) = dry_run.dry_run(flower.home, CONTRACT, sites=[])
    assert (verdict["verdict"], flower.started) == ("accept", 3)


@pytest.mark.parametrize("flower", [["first", "second", "a handshake broke"]], indirect=True)
def test_one_that_always_ends_is_told_with_flowers_words(flower: Flower) -> None:
    with pytest.raises(RunError, match=r"\(a handshake broke\); see logs/executor\.log"):
        dry_run.dry_run(flower.home, CONTRACT, sites=[])
    assert flower.started == 3


@pytest.mark.parametrize("flower", [[None]], indirect=True)
def test_one_that_is_killed_while_it_asks_is_started_again_before_flower_misses_it(
    flower: Flower, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(link: object, folder: Path) -> bool:
        assert not (folder / "lock").exists(), "whether it has begun is told by a lock of its own"
        if not flower.started:
            with hold_run(folder):
                pass
        return flower.start(link, folder)

    monkeypatch.setattr(dry_run, "start_run", start)
    (verdict,) = dry_run.dry_run(flower.home, CONTRACT, sites=[])
    assert (verdict["verdict"], flower.started) == ("accept", 2)


@pytest.mark.parametrize("flower", [[None]], indirect=True)
def test_one_that_says_nothing_is_not_waited_for_without_end(
    flower: Flower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "DONE_WITHIN_S", 0.3)
    with pytest.raises(RunError, match="it took too long"):
        dry_run.dry_run(flower.home, CONTRACT, sites=[])
    assert flower.started == 1
