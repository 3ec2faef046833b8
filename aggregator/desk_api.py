"""Everything the desk shows of a run, read from the runs' folders; what is not known is None."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from aggregator.home import AggregatorHome
from aggregator.lifecycle import RunState, read_state
from aggregator.publishing import find_run
from aggregator.runs import RunError, RunPlan, read_events, read_mandate, read_plan
from aggregator.runs import read_run_contract as read_contract
from aggregator.utility import UTILITY
from shared.contract import RunContract
from shared.frozen import Frozen


class SiteView(Frozen):
    """A site as the run last heard of it."""

    name: str
    state: str | None = Field(
        None, description="asked, computing, answered, rejected, offline, gone, refused, late"
    )
    waited_s: float | None = None
    reason: str = ""
    releases: int | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    audit_head: str | None = None


class RoundView(Frozen):
    """A round that is done."""

    round: int
    phase: str = Field(description="what was asked: anchor, probes")
    ended: float = Field(description="seconds since 1970")
    seconds: float | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    sites: int | None = Field(None, description="whose answers were used")
    loss: float | None = Field(None, description="matching distance after the round's steps")
    cosine: tuple[float, ...] | None = Field(None, description="by persona")
    epsilon: float | None = Field(None, description="spent up to and with this round")


class RunView(Frozen):
    """A run, whole."""

    digest: str
    name: str
    state: RunState
    contract: RunContract
    plan: RunPlan
    coordinator: str | None = Field(None, description="public key that signed the contract")
    phase: str = ""
    message: str = ""
    eta_s: float | None = None
    round: int = 0
    rounds: int = 0
    updated: float | None = Field(None, description="of the last event, seconds since 1970")
    sites: tuple[SiteView, ...] = ()
    history: tuple[RoundView, ...] = ()
    utility: dict[str, Any] | None = None
    pairs: Path | None = Field(None, description="safetensors with lq and hq, once they are there")


def runs(home: AggregatorHome) -> list[RunView]:
    """All runs, the newest first. A folder that cannot be read is left out."""
    found = []
    for folder in home.runs.glob("[0-9a-f]" * 16):
        try:
            found.append(_view(folder))
        except RunError:
            continue
    return sorted(found, key=lambda one: one.state.since, reverse=True)


def run_view(home: AggregatorHome, digest: str) -> RunView:
    """One run, by its digest, the beginning of it, or its name. Raises ``RunError``."""
    return _view(find_run(home, digest))


def _view(run: Path) -> RunView:
    contract, plan, state = read_contract(run), read_plan(run), read_state(run)
    events, _ = read_events(run, from_byte=0)
    last: Mapping[str, Any] = events[-1] if events else {}
    mandate = read_mandate(run)
    counts = (_json(run / "result.json") or {}).get("sites", {})
    heard = _heard(events)
    names = sorted({*plan.sites, *heard})
    pairs = run / "pairs.safetensors"
    return RunView(
        digest=contract.digest(),
        name=contract.name,
        state=state,
        contract=contract,
        plan=plan,
        coordinator=mandate.coordinator if mandate else None,
        phase=str(last.get("phase", "")),
        message=str(last.get("message", "")),
        eta_s=last.get("eta_s"),
        round=int(last.get("round") or state.round),
        rounds=contract.rounds,
        updated=last.get("time"),
        sites=tuple(
            SiteView.model_validate(
                {
                    "name": name,
                    **_known(SiteView, heard.get(name, {})),
                    **_known(SiteView, counts.get(name, {})),
                }
            )
            for name in names
        ),
        history=tuple(_rounds(events)),
        utility=_json(run / UTILITY),
        pairs=pairs if pairs.exists() else None,
    )


def _heard(events: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was last said of each site."""
    heard: dict[str, dict[str, Any]] = {}
    for event in events:
        said = event.get("sites")
        if isinstance(said, dict):
            heard.update({str(name): dict(one) for name, one in said.items()})
    return heard


def _rounds(events: Iterable[Mapping[str, Any]]) -> list[RoundView]:
    """Rounds that ended, each once: one that was asked again after a stop counts as it ended."""
    ended: dict[int, RoundView] = {}
    for event in events:
        said = event.get("ended")
        if isinstance(said, dict):
            number = int(event.get("round", 0))
            ended[number] = RoundView.model_validate(
                {
                    "round": number,
                    "phase": said.get("asked", event.get("phase", "")),
                    "ended": event.get("time", 0.0),
                    **_known(RoundView, said, but=("round", "phase", "ended")),
                }
            )
    return [ended[number] for number in sorted(ended)]


def _known(
    model: type[Frozen], said: Mapping[str, Any], *, but: tuple[str, ...] = ("name",)
) -> dict[str, Any]:
    return {key: said[key] for key in model.model_fields if key in said and key not in but}


def _json(path: Path) -> dict[str, Any] | None:
    try:
        read = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return read if isinstance(read, dict) else None
