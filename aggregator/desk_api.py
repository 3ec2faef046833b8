"""Everything the desk shows of a run, read from the runs' folders; what is not known is None.

Addresses are paths on this server, never files of it.
"""

import json
import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open

from aggregator.chronicle import Chronicle, Event, chronicle_of
from aggregator.gates import GateReport, read_gates
from aggregator.home import AggregatorHome
from aggregator.hospital_table import JudgementError, SiteFigures, SiteVerdict, read_judgement
from aggregator.lifecycle import RunState, read_state
from aggregator.meanings import STATES, why_it_waits
from aggregator.publishing import find_run
from aggregator.runs import RunError, RunPlan, read_mandate, read_plan
from aggregator.runs import read_run_contract as read_contract
from aggregator.snapshots import snapshot_rounds
from aggregator.utility import UTILITY
from shared.contract import RunContract
from shared.frozen import Frozen

MAX_HEADER_BYTES = 1024 * 1024


class SiteView(Frozen):
    """A site as the run last heard of it."""

    name: str
    state: str | None = Field(
        None, description="asked, computing, answered, rejected, offline, gone, refused, late"
    )
    since: float | None = Field(None, description="of that state, seconds since 1970")
    waited_s: float | None = None
    reason: str = ""
    why: str = Field("", description="what it does, or why it is waited for, in words")
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
    cosine: tuple[float, ...] | None = Field(
        None, description="of each persona's gradient with its target; None of an anchor round"
    )
    personas: tuple[str, ...] | None = Field(None, description="whom each cosine is about")
    epsilon: float | None = Field(None, description="spent up to and with this round")


class PairsView(Frozen):
    """Where the distilled pairs are to be had."""

    url: str = Field(description="safetensors with lq and hq, window units; takes a Range")
    shape: tuple[int, ...] = Field(description="of lq, and of hq: (pairs, 1, S, S)")


class SnapshotView(Frozen):
    """Some of the pairs as they were after a round; 0 is before the first."""

    round: int
    url: str = Field(description="safetensors: lq, hq (float16), number, task")
    sheet: str = Field(description="the same as a picture, PNG")


class HospitalsView(Frozen):
    """What the hospitals said of the finished run."""

    asked: tuple[str, ...]
    sets: tuple[str, ...] = Field(description="training sets, ``seeds`` networks each")
    seeds: int
    anchor: bool = Field(description="whether the anchor was judged too, last")
    figures: dict[str, SiteFigures]
    verdicts: dict[str, SiteVerdict]
    problems: dict[str, str] = Field(description="why a site gave none")

    def psnr_db(self, site: str) -> dict[str, float] | None:
        """What a site measured, the mean over seeds of each set; None where it gave no figures."""
        if site not in self.figures:
            return None
        given = self.figures[site].psnr_db
        found = {"input": given[0]}
        for number, name in enumerate(self.sets):
            of_set = given[1 + number * self.seeds : 1 + (number + 1) * self.seeds]
            found[name] = sum(of_set) / len(of_set) if of_set else float("nan")
        return found | ({"anchor": given[-1]} if self.anchor else {})


class RunView(Frozen):
    """A run, whole."""

    digest: str
    name: str
    state: RunState
    meaning: str = Field(description="of its state, in words")
    contract: RunContract
    plan: RunPlan
    coordinator: str | None = Field(None, description="public key that signed the contract")
    phase: str = ""
    message: str = ""
    done: int = Field(0, description="steps of the phase that are done")
    total: int = 0
    eta_s: float | None = None
    round: int = 0
    rounds: int = 0
    began: float | None = Field(None, description="of the first event, seconds since 1970")
    updated: float | None = Field(None, description="of the last event, seconds since 1970")
    journal_bytes: int = Field(0, description="of the journal up to now: where to read on")
    sites: tuple[SiteView, ...] = ()
    history: tuple[RoundView, ...] = ()
    utility: dict[str, Any] | None = None
    hospitals: HospitalsView | None = None
    gates: GateReport | None = None
    pairs: PairsView | None = Field(None, description="once they are there")
    snapshots: tuple[SnapshotView, ...] = ()


class UnreadableRun(Frozen):
    """A run's folder in which something is damaged."""

    folder: str
    reason: str = Field(description="what, and how to mend it")


class Survey(Frozen):
    """All runs, the newest first, and those that cannot be shown."""

    runs: tuple[RunView, ...] = ()
    unreadable: tuple[UnreadableRun, ...] = ()


def survey(home: AggregatorHome) -> Survey:
    """All runs. One whose folder cannot be read hides no other, and is named with the reason."""
    found, unreadable = [], []
    for folder in sorted(home.runs.glob("[0-9a-f]" * 16)):
        try:
            found.append(_view(home, folder))
        except RunError as error:
            unreadable.append(UnreadableRun(folder=folder.name, reason=str(error)))
    found.sort(key=lambda one: one.state.since, reverse=True)
    return Survey(runs=tuple(found), unreadable=tuple(unreadable))


def run_view(home: AggregatorHome, digest: str) -> RunView:
    """One run, by its digest, the beginning of it, or its name. Raises ``RunError``."""
    return _view(home, find_run(home, digest))


def _view(home: AggregatorHome, run: Path) -> RunView:
    try:
        return _read(run)
    except RunError as error:  # which file it is, but not where the home is
        raise RunError(str(error).replace(f"{home.root}/", "")) from None
    except (ValidationError, ValueError, TypeError):
        raise RunError(
            f"runs/{run.name}/events.jsonl says what no version of ours writes: move it away, "
            "nothing but the run's curves is lost"
        ) from None


def _read(run: Path) -> RunView:
    contract, digest = _contract(run)
    plan, state = read_plan(run), read_state(run)
    told, mandate = chronicle_of(run), read_mandate(run)
    counts, last, here = _counts(run), told.last, f"/api/desk/runs/{digest}/pairs"
    shape = _shape(run / "pairs.safetensors")
    return RunView(
        digest=digest,
        name=contract.name,
        state=state,
        meaning=STATES[state.state],
        contract=contract,
        plan=plan,
        coordinator=mandate.coordinator if mandate else None,
        phase=str(last.get("phase", "")),
        message=str(last.get("message", "")),
        done=int(last.get("done") or 0),
        total=int(last.get("total") or 0),
        eta_s=last.get("eta_s"),
        round=int(last.get("round") or state.round),
        rounds=contract.rounds,
        began=told.first,
        updated=last.get("time"),
        journal_bytes=told.bytes,
        sites=tuple(
            _site(name, told.sites.get(name, {}), counts.get(name, {}))
            for name in sorted({*plan.sites, *told.sites})
        ),
        history=tuple(_rounds(told)),
        utility=_json(run / UTILITY),
        hospitals=_hospitals(run),
        gates=read_gates(run),
        pairs=PairsView(url=here, shape=shape) if shape else None,
        snapshots=tuple(
            SnapshotView(round=number, url=f"{here}/{number}", sheet=f"{here}/{number}.png")
            for number in snapshot_rounds(run)
        ),
    )


def _contract(run: Path) -> tuple[RunContract, str]:
    """The run's contract and its digest, which takes milliseconds; raises ``RunError``."""
    try:
        about = (run / "contract.json").stat()
    except OSError:
        about = None
    return _read_contract(run, about and (about.st_ino, about.st_mtime_ns, about.st_size))


@lru_cache(maxsize=1024)
def _read_contract(run: Path, _version: object) -> tuple[RunContract, str]:
    contract = read_contract(run)
    return contract, contract.digest()


def _site(name: str, said: Event, counts: Mapping[str, Any]) -> SiteView:
    state, reason = said.get("state"), str(said.get("reason", ""))
    return SiteView.model_validate(
        {
            "name": name,
            **_known(SiteView, counts),
            "state": state,
            "since": said.get("since"),
            "waited_s": said.get("waited_s"),
            "reason": reason,
            "why": why_it_waits(name, state, reason),
        }
    )


def _rounds(told: Chronicle) -> Iterable[RoundView]:
    for number, event in told.rounds.items():
        said = event["ended"]
        yield RoundView.model_validate(
            {
                "round": number,
                "phase": said.get("asked", event.get("phase", "")),
                "ended": event.get("time", 0.0),
                **_known(RoundView, said, but=("round", "phase", "ended")),
            }
        )


def _known(
    model: type[Frozen], said: Mapping[str, Any], *, but: tuple[str, ...] = ("name",)
) -> dict[str, Any]:
    return {key: said[key] for key in model.model_fields if key in said and key not in but}


def _hospitals(run: Path) -> HospitalsView | None:
    try:
        judgement = read_judgement(run)
    except JudgementError as error:
        raise RunError(str(error)) from None
    if judgement is None:
        return None
    return HospitalsView.model_validate(
        {name: getattr(judgement, name) for name in HospitalsView.model_fields}
    )


def _counts(run: Path) -> dict[str, Any]:
    """What each site has sent and been sent, up to the last round that was kept."""
    result = _json(run / "result.json")
    if result is None:
        try:
            with safe_open(run / "checkpoint.safetensors", framework="np") as checkpoint:
                result = json.loads((checkpoint.metadata() or {}).get("ledger", "{}"))
        except (OSError, SafetensorError, ValueError):
            return {}
    sites = result.get("sites", {}) if isinstance(result, dict) else {}
    return sites if isinstance(sites, dict) else {}


def _shape(pairs: Path) -> tuple[int, ...] | None:
    """Of the pairs in a file, from its header alone; None where there is none."""
    try:
        with pairs.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, MAX_HEADER_BYTES)))
        return tuple(int(size) for size in header["hq"]["shape"])
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        read = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return read if isinstance(read, dict) else None
