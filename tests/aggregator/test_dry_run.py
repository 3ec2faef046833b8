from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aggregator import dry_run
from aggregator.costs import cost_of
from aggregator.dry_run import VERDICTS, ask_sites, keep_verdicts, told
from aggregator.home import create_home
from aggregator.runs import RunError, read_plan, read_run_contract
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

CONTRACT = RunContract(name="x")
NOTHING = {"code": None, "incident": None, "patients_at_least": None}


def answers(payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
    query = decode(payload).header
    assert isinstance(query, DryRunQueryHeader)
    said: dict[str, Any] = {"contract_digest": query.contract_digest, "patients_at_least": 20}
    no = {"code": RefusalCode.POLICY, "incident": "0123456789ab"}
    every = {
        "yes": encode(Message(header=DryRunHeader(site="yes", **said))),
        "no": encode(Message(header=DryRunHeader(site="no", **said, **no))),
        "broken": b"nothing",
        "old": encode(refusal(site="old", code=RefusalCode.UNKNOWN_KIND, incident="1" * 12)),
        "liar": encode(Message(header=DryRunHeader(site="yes", **said))),
    }
    return {site: every[site] for site in sites if site in every}


def test_each_site_is_told_apart() -> None:
    verdicts = ask_sites(CONTRACT, ["yes", "no", "broken", "old", "liar", "silent"], answers)
    assert [one["verdict"] for one in verdicts] == ["accept", *["refuse"] * 4, "no answer"]
    assert verdicts[0] == {
        "site": "yes",
        "verdict": "accept",
        "code": None,
        "incident": None,
        "patients_at_least": 20,
    }
    assert (verdicts[1]["code"], verdicts[1]["incident"]) == ("policy", "0123456789ab")
    assert [one["code"] for one in verdicts[2:]] == [
        "not a message of ours",
        f"refused: unknown-kind (incident {'1' * 12})",
        "site is not that of the request",
        None,
    ]
    lines = told(verdicts).splitlines()
    assert lines[0].split() == ["site", "verdict", "why", "patients", "would", "cost", "it"]
    assert lines[1].split() == ["yes", "accept", "at", "least", "20"]
    assert "policy (incident 0123456789ab)" in lines[2]
    assert "patients with real pairs" in told(verdicts, real_pairs=True).splitlines()[0]


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
    assert verdicts[2]["cost"] == cost_of(CONTRACT, patients=20).model_dump()
    releases = CONTRACT.anchor.rounds + CONTRACT.probes.requests * len(CONTRACT.probes.depths)
    shown = f"{CONTRACT.rounds} rounds, {releases} gradient vectors, no differential privacy"
    assert shown in told(verdicts).splitlines()[3]
    assert dry_run.dry_run(home, CONTRACT, sites=["off"]) == [
        {"site": "off", "verdict": "offline", **NOTHING, "cost": None}
    ]
    with pytest.raises(RunError, match="not enrolled: stranger"):
        dry_run.dry_run(home, CONTRACT, sites=["stranger"])
    assert not home.run_folder(CONTRACT.digest()).exists(), "no run is begun"
