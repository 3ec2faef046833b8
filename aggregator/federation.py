"""The round loop: ask, check, bank, distil, checkpoint; the same in Flower and in one process.

A run is a folder. ``checkpoint.safetensors`` is replaced whole after every round; a run that goes
on from it ends with the same pairs as one that was never stopped, because every random number
follows from the contract's digest and the round, and a site repeats an answer it has given.
"""

import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from aggregator.admission import Admitted, Rejected, admit
from aggregator.distill.distiller import Distiller
from aggregator.distill.schedule import ask_of_round
from aggregator.exchange import Exchange
from aggregator.foundation import FoundationError, foundation_of, read_prior
from aggregator.lifecycle import Steering, quorum_of
from aggregator.progress import Journal, Phase, SiteNews, SiteState
from aggregator.runs import FOUNDATION
from aggregator.secure_sum import FILE as SUM
from aggregator.secure_sum import SecureSum, SecureSumError, SitesMissing, Tell
from aggregator.snapshots import keep_snapshot
from shared import accounting
from shared.contract import RunContract
from shared.durable import write_durably
from shared.mandate import Mandate
from shared.messages import FloatArray, Message, ProbeHeader, encode, payload_digest, probe_batch

CHECKPOINT, PAIRS, RESULT, EVENTS = (
    "checkpoint.safetensors",
    "pairs.safetensors",
    "result.json",
    "events.jsonl",
)
QUORUM = 0.5
"""Share of the sites that must answer a round with a summary that is admitted."""


class FederationError(RuntimeError):
    """The run cannot go on; the text is safe to show and says what to do."""


class BelowQuorum(FederationError):  # noqa: N818
    """Too few sites answered a round; the run goes on from it once they do."""

    def __init__(self, message: str, *, missing: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.missing = tuple(missing)
        """Sites that were silent; those that refused, or answered nonsense, are not among them."""


@dataclass(frozen=True)
class _Heard:
    """What a round has brought: answers to absorb, and the patients behind each."""

    values: list[FloatArray]
    patients: list[int]
    names: tuple[str, ...]
    """Of the sites; of a sum, all that are in it."""
    seconds: float
    """Time the slowest site says its worker spent."""


def federate(
    *,
    contract: RunContract,
    sites: Sequence[str],
    exchange: Exchange,
    run: Path,
    public: Path | None = None,
    mandate: Mandate | None = None,
    quorum: float = QUORUM,
    journal: Journal | None = None,
    steering: Steering | None = None,
) -> None:
    """Works on a run until its pairs are written; returns at once where they are.

    Args:
        sites: names of the enrolled sites that are asked.
        run: the run's folder, made if absent. Ends with ``pairs.safetensors`` (``lq`` and ``hq``,
            (T * N, 1, S, S), the contract's tasks one after the other) and ``result.json``, whose
            ``releases`` counts the gradient vectors of the site that released most, and
            ``requests`` the rounds they came in; ``audit_head`` of a site is the last one it told.
        public: folder of public images, where the contract's prior is public.
        mandate: the coordinator's signature, which sites ask for.
        quorum: share of the sites whose answers a round needs.
        journal: of the run; without it one is begun.
        steering: is asked whether to go on, and told of rounds that are kept.

    Raises:
        BelowQuorum: too few sites answered.
        FederationError: the prior is missing, or the folder belongs to another contract.
        Interrupted: ``steering`` says so; the run goes on from its last checkpoint.
    """
    run.mkdir(parents=True, exist_ok=True)
    if (run / RESULT).exists():
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    journal = journal or Journal(run / EVENTS, rounds=contract.rounds)

    def on_step(phase: str, done: int, total: int) -> None:
        if steering is not None:
            steering.check()
        named: Phase = (
            "public" if phase == "public" else "distil" if phase == "distil" else "probes"
        )
        journal.step(named, done, total)

    try:
        prior, foundation = read_prior(contract, public), foundation_of(contract, run / FOUNDATION)
    except FoundationError as error:
        raise FederationError(str(error)) from None
    distiller = Distiller(contract, prior, device=device, on_step=on_step, foundation=foundation)
    ledger = _resume(run / CHECKPOINT, contract, distiller, sites)
    _timed(ledger, "public", distiller.prepare)
    keep_snapshot(run, distiller)
    _checkpoint(run / CHECKPOINT, contract, distiller, ledger)
    while not distiller.finished:
        _round(contract, sites, exchange, run, distiller, journal, ledger, mandate, quorum)
        _checkpoint(run / CHECKPOINT, contract, distiller, ledger)
        if steering is not None:
            steering.round_ended(distiller.round, last=distiller.finished)
    lq, hq = distiller.pairs()
    write_durably(run / PAIRS, save({"lq": lq.contiguous(), "hq": hq.contiguous()}))
    result = {
        "contract_digest": contract.digest(),
        "rounds": distiller.round,
        "requests": distiller.round,
        "releases": max((entry["releases"] for entry in ledger["sites"].values()), default=0),
        "sites": ledger["sites"],
        "seconds": {phase: round(seconds, 2) for phase, seconds in ledger["seconds"].items()},
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "provenance": ledger["provenance"],
    }
    write_durably(run / RESULT, json.dumps(result, indent=2).encode())
    journal.step("done", contract.rounds, contract.rounds, "pairs are written")


def _round(
    contract: RunContract,
    sites: Sequence[str],
    exchange: Exchange,
    run: Path,
    distiller: Distiller,
    journal: Journal,
    ledger: dict[str, Any],
    mandate: Mandate | None,
    quorum: float,
) -> None:
    number = distiller.round + 1
    kind = ask_of_round(contract, number).kind
    later = [ask_of_round(contract, n).kind for n in range(number + 1, contract.rounds + 1)]
    journal.begin_round(number, kind=kind, remaining={one: later.count(one) for one in set(later)})
    phase: Phase = "anchor" if kind == "local-steps" else "probes"
    ask, weights = _timed(ledger, phase, distiller.ask)
    rows = weights.cpu().numpy()
    request = probe_batch(
        contract=contract,
        round=number,
        kind=ask.kind,
        network=ask.network,
        weights=rows,
        mandate=mandate,
        **{name: array.cpu().numpy() for name, array in distiller.reducing().items()},
    )
    journal.step(phase, 0, len(sites), f"asked {len(sites)} sites")

    def tell(done: int, message: str) -> None:
        journal.step(phase, done, len(sites), message)

    def hear() -> _Heard:
        if contract.granularity == "federation":
            file = run / SUM
            return _sum(request, sites, exchange=exchange, file=file, tell=tell, ledger=ledger)
        least = quorum_of(sites, quorum)
        return _each(
            request,
            sites,
            exchange=exchange,
            tell=tell,
            ledger=ledger,
            journal=journal,
            least=least,
        )

    before = _bytes(ledger)
    asked = time.monotonic()
    heard: _Heard = _timed(ledger, f"sites-{phase}", hear)
    waited_s = time.monotonic() - asked
    # What the round took beyond its slowest worker: Flower, sockets, polling.
    transport_s = max(0.0, waited_s - heard.seconds)
    ledger["seconds"]["transport"] = ledger["seconds"].get("transport", 0.0) + transport_s
    _timed(
        ledger,
        "distil" if phase == "probes" else phase,
        lambda: distiller.absorb(
            [torch.from_numpy(values) for values in heard.values],
            patients=heard.patients,
            sites=len(heard.names),
        ),
    )
    _timed(ledger, "snapshot", lambda: keep_snapshot(run, distiller))
    up, down = (now - then for now, then in zip(_bytes(ledger), before, strict=True))
    journal.end_round(
        asked=phase,
        sites=len(heard.names),
        waited_s=round(waited_s, 3),
        bytes_up=up,
        bytes_down=down,
        loss=distiller.loss if phase == "probes" else None,
        cosine=distiller.cosines if phase == "probes" else None,
        personas=_personas(contract, heard, distiller.cosines) if phase == "probes" else None,
        epsilon=_epsilon(contract, number),
    )


def _personas(
    contract: RunContract, heard: _Heard, cosines: Sequence[float] | None
) -> list[str] | None:
    """Whom each cosine is about: as ``dealt`` deals sites, or patients, to images."""
    if cosines is None:
        return None
    if contract.spg.persona == "federation":
        return ["all sites"]
    groups = len(cosines)
    if contract.spg.persona == "cohort":
        return [", ".join(heard.names[group::groups]) for group in range(groups)]
    return [f"patient {group}" for group in range(groups)]


def _bytes(ledger: dict[str, Any]) -> tuple[int, int]:
    """Up and down, of all sites so far."""
    sites = ledger["sites"].values()
    return sum(one["bytes_up"] for one in sites), sum(one["bytes_down"] for one in sites)


def _epsilon(contract: RunContract, rounds: int) -> float | None:
    """What so many rounds cost a patient; None without differential privacy."""
    noise, privacy = contract.noise_multiplier, contract.privacy
    if noise is None:
        return None
    spent = [accounting.Spent(noise, privacy.sampling, rounds)]
    return round(accounting.epsilon_of(spent, delta=privacy.delta), 4)


def _each(
    request: Message,
    sites: Sequence[str],
    *,
    exchange: Exchange,
    tell: Tell,
    ledger: dict[str, Any],
    journal: Journal,
    least: int,
) -> _Heard:
    """Every site's own answer."""
    assert isinstance(request.header, ProbeHeader)
    payload = encode(request)
    answers = exchange(payload, request.header.round, sites)
    admitted: dict[str, Admitted] = {}
    problems: dict[str, str] = {}
    news: dict[str, SiteNews] = {}
    for site in sites:
        if site not in answers:
            problems[site] = "no answer"
            continue
        try:
            admitted[site] = admit(
                answers[site],
                site=site,
                request=request.header,
                request_digest=payload_digest(payload),
                weights=request.arrays["weights"],
            )
        except Rejected as reason:
            problems[site] = str(reason)
            kind: SiteState = "refused" if str(reason).startswith("refused") else "rejected"
            news[site] = {"state": kind, "waited_s": 0.0, "reason": f"{site}: {reason}"}
            continue
        news[site] = {"state": "answered", "waited_s": 0.0, "reason": ""}
        entry = ledger["sites"][site]
        # One a probe, or at patient granularity one a probe and patient.
        entry["releases"] += admitted[site].values.size // admitted[site].values.shape[-1]
        entry["audit_head"] = admitted[site].audit_head
        entry["bytes_up"] += len(answers[site])
        entry["bytes_down"] += len(payload)
    journal.sites(news)
    told = "; ".join(f"{site}: {reason}" for site, reason in problems.items())
    tell(len(admitted), told or f"{len(admitted)} summaries banked")
    if len(admitted) < least:
        raise BelowQuorum(
            f"round {request.header.round}: {len(admitted)} of {len(sites)} sites gave a usable "
            f"summary, {least} are needed ({told}); mend the sites and launch the same contract "
            "again to go on from here",
            missing=[site for site in sites if site not in answers],
        )
    return _Heard(
        values=[one.values for one in admitted.values()],
        patients=[one.patients_at_least for one in admitted.values()],
        names=tuple(admitted),
        seconds=max(one.seconds for one in admitted.values()),
    )


def _sum(
    request: Message,
    sites: Sequence[str],
    *,
    exchange: Exchange,
    file: Path,
    tell: Tell,
    ledger: dict[str, Any],
) -> _Heard:
    """What all sites say together, and none by itself."""
    assert isinstance(request.header, ProbeHeader)
    if {member.name for member in request.header.contract.members} != set(sites):
        raise FederationError("the contract's members are not the run's sites: `launch` names them")
    try:
        summed = SecureSum(request, exchange=exchange, file=file, tell=tell).result()
    except SitesMissing as error:
        raise BelowQuorum(str(error)) from None
    except SecureSumError as error:
        raise FederationError(str(error)) from None
    for site, spent in summed.spent.items():
        for count, more in spent.model_dump().items():
            ledger["sites"][site][count] += more
    for site, head in summed.audit_heads.items():
        ledger["sites"][site]["audit_head"] = head
    # One answer alone is its own mean, whatever its weight.
    return _Heard(
        values=[summed.mean], patients=[1], names=tuple(summed.sites), seconds=summed.seconds
    )


def _timed(ledger: dict[str, Any], phase: str, work: Callable[[], Any]) -> Any:
    start = time.monotonic()
    result = work()
    seconds = ledger["seconds"]
    seconds[phase] = seconds.get(phase, 0.0) + time.monotonic() - start
    return result


def _checkpoint(
    file: Path, contract: RunContract, distiller: Distiller, ledger: dict[str, Any]
) -> None:
    metadata = {"contract_digest": contract.digest(), "ledger": json.dumps(ledger)}
    write_durably(file, save(distiller.state(), metadata=metadata))


def _resume(
    file: Path, contract: RunContract, distiller: Distiller, sites: Sequence[str]
) -> dict[str, Any]:
    """Restores the distiller where there is a checkpoint; the counters of the run either way."""
    ledger: dict[str, Any] = {
        "seconds": {},
        "sites": {
            site: {"releases": 0, "bytes_up": 0, "bytes_down": 0, "audit_head": None}
            for site in sites
        },
        "provenance": distiller.provenance,
    }
    if not file.exists():
        return ledger
    try:
        with safe_open(file, framework="pt") as checkpoint:
            metadata = checkpoint.metadata()
            if metadata["contract_digest"] != contract.digest():
                raise FederationError(f"{file} belongs to another contract; use another run folder")
            distiller.restore(
                {
                    name: checkpoint.get_tensor(name)
                    for name in checkpoint.keys()  # noqa: SIM118
                }
            )
            restored: dict[str, Any] = json.loads(metadata["ledger"])
    except (SafetensorError, KeyError, ValueError):
        raise FederationError(
            f"{file} cannot be read; move it away to start the run from its first round"
        ) from None
    restored["sites"] = {**ledger["sites"], **restored["sites"]}
    return restored
