"""`aggregator launch --dry-run`: who would answer a contract and who would refuse, and why.

Each site that is online is asked over Flower, as in a run; it computes nothing on patients, and
releases and charges nothing. Sites answer with a code: the reason itself is in the hospital's log,
under the incident. They tell their standing too; one of an earlier version, which does not know
that question, is asked again without.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aggregator.admission import Rejected, admit_dry_run
from aggregator.coordinators import mandate_of
from aggregator.enrolment import enrolled_sites
from aggregator.exchange import Exchange
from aggregator.heard import STANDING, keep_heard
from aggregator.home import AggregatorHome
from aggregator.runs import LOCK, MANDATE, RunError, RunPlan, flower_run, is_held, start_run
from aggregator.superlink import SuperLink, superlink
from shared.contract import RunContract
from shared.durable import write_durably
from shared.mandate import Mandate
from shared.messages import (
    DryRunQueryHeader,
    Message,
    MessageError,
    RefusalCode,
    RefusalHeader,
    decode,
    encode,
)
from shared.standing import BudgetLeft, left_in_words

PREFIX = "dry-"
"""Of the folder's name, before that of the run itself."""
VERDICTS = "verdicts.json"
ANSWER_WITHIN_S = 60.0
DONE_WITHIN_S = 150.0  # also where sites of earlier versions are asked again
POLL_S = 0.2
ASK_S = 1.0
TRIES = 3
"""How often a ServerApp is started that ends before it has asked: asking costs a site nothing."""
NOTHING = dict.fromkeys(("code", "incident", "patients_at_least", *STANDING))
NOT_TOLD = "not told"


def ask_sites(
    contract: RunContract,
    sites: Sequence[str],
    exchange: Exchange,
    *,
    mandate: Mandate | None = None,
) -> list[dict[str, Any]]:
    """What each site says: its name, ``verdict``, and all of ``NOTHING``, None where not told."""
    query = DryRunQueryHeader(
        contract=contract, contract_digest=contract.digest(), mandate=mandate, standing=True
    )
    answers = dict(exchange(encode(Message(header=query)), 1, sites))
    earlier = [site for site in sites if site in answers and _is_not_understood(answers[site])]
    if earlier:
        plain = query.model_copy(update={"standing": False})
        answers |= exchange(encode(Message(header=plain)), 1, earlier)
    verdicts = []
    for site in sites:
        said = dict(NOTHING)
        if site not in answers:
            verdict = "no answer"
        else:
            try:
                told = admit_dry_run(answers[site], site=site, query=query)
            except Rejected as reason:
                verdict, said["code"] = "refuse", str(reason)
            else:
                verdict = "accept" if told.code is None else "refuse"
                said |= told.model_dump(mode="json", include=set(said))
                if told.standing is not None:
                    said |= told.standing.model_dump(mode="json")
        verdicts.append({"site": site, "verdict": verdict, **said})
    return verdicts


def _is_not_understood(answer: bytes) -> bool:
    try:
        header = decode(answer).header
    except MessageError:
        return False
    return isinstance(header, RefusalHeader) and header.code is RefusalCode.MALFORMED


def dry_run(
    home: AggregatorHome,
    contract: RunContract,
    *,
    sites: Sequence[str],
    coordinator: str | None = None,
) -> list[dict[str, Any]]:
    """Asks the sites that are online; the others are told as ``offline``.

    Raises ``RunError``, ``CoordinatorError`` or ``SuperLinkError``. ``sites`` empty: all that are
    enrolled.
    """
    from aggregator.launch import with_members

    records = enrolled_sites(home)
    named = sorted(set(sites)) or [one.name for one in records]
    unknown = sorted(set(named) - {one.name for one in records})
    if unknown:
        raise RunError(f"not enrolled: {', '.join(unknown)}")
    contract = with_members(contract, [one for one in records if one.name in named])
    mandate = mandate_of(home, coordinator, contract_digest=contract.digest())
    with superlink(home) as link:
        online = {node.name for node in link.nodes() if node.online}
        asked = [site for site in named if site in online]
        verdicts = _asked(home, contract, mandate, asked, link) if asked else []
    keep_heard(home, contract, verdicts)
    absent = [
        {"site": site, "verdict": "offline", **NOTHING} for site in named if site not in online
    ]
    by_site = sorted(verdicts + absent, key=lambda one: str(one["site"]))
    return [{**one, "cost": _cost(contract, one)} for one in by_site]


def _cost(contract: RunContract, verdict: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the whole run would cost a site that takes part; None of one that would not."""
    if verdict["verdict"] != "accept":
        return None
    from aggregator.costs import cost_of  # torch, which a ServerApp's dry run does without

    cost = cost_of(contract, patients=verdict["patients_at_least"], seconds=verdict["seconds"])
    return cost.model_dump(mode="json")


def _asked(
    home: AggregatorHome,
    contract: RunContract,
    mandate: Mandate,
    sites: Sequence[str],
    link: SuperLink,
) -> list[dict[str, Any]]:
    folder = home.runs / f"{PREFIX}{contract.digest()[:16]}"
    if is_held(folder):
        raise RunError("the contract is being asked about already: wait a minute")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = folder / VERDICTS
    file.unlink(missing_ok=True)
    plan = RunPlan(sites=tuple(sites), round_timeout_s=ANSWER_WITHIN_S)
    write_durably(folder / "contract.json", contract.model_dump_json().encode())
    write_durably(folder / MANDATE, mandate.model_dump_json().encode())
    write_durably(folder / "plan.json", plan.model_dump_json().encode())
    deadline, reason = time.monotonic() + DONE_WITHIN_S, "it took too long"
    for _ in range(TRIES):
        (folder / LOCK).unlink(missing_ok=True)
        start_run(link, folder)
        ended = _await(file, link, deadline=deadline)
        if ended is None:
            verdicts: list[dict[str, Any]] = json.loads(file.read_bytes())
            return verdicts
        reason = ended or reason
        if time.monotonic() >= deadline:
            break
    raise RunError(
        f"the sites could not be asked ({reason}); see logs/executor.log in the aggregator's home"
    )


def _await(file: Path, link: SuperLink, *, deadline: float) -> str | None:
    """Waits for the verdicts: None where they are there, else why not, as far as Flower knows."""
    folder, next_question, unheld = file.parent, time.monotonic() + ASK_S, 0
    while not file.exists():
        begun, now = (folder / LOCK).exists(), time.monotonic()
        if now >= deadline:
            return ""
        unheld = unheld + 1 if begun and not is_held(folder) else 0
        if unheld > 1:  # once, it may be about to take it; what it left last may be the verdicts
            return None if file.exists() else "its ServerApp ended before it had asked"
        if not begun and now >= next_question:
            next_question = now + ASK_S
            ending = link.ending(flower_run(folder))
            if ending is not None and not file.exists():
                return ending
        time.sleep(POLL_S)
    return None


def keep_verdicts(folder: Path, verdicts: Sequence[dict[str, Any]]) -> None:
    """Leaves what the sites said where the launcher looks for it."""
    write_durably(folder / VERDICTS, json.dumps(list(verdicts)).encode())


def told(verdicts: Sequence[dict[str, Any]], *, real_pairs: bool = False) -> str:
    """The same as a table; of a contract of real pairs, patients are those who have some."""
    patients_of = "patients with real pairs" if real_pairs else "patients"
    header = ("site", "verdict", "why", patients_of, "version", "budget left", "would cost it")
    rows = [header]
    for one in verdicts:
        why = str(one["code"] or "")
        if one["incident"]:
            why += f" (incident {one['incident']})"
        patients = one["patients_at_least"]
        told_patients = "" if patients is None else f"at least {patients}"
        version, left, cost = _standing_in_words(one)
        rows.append((one["site"], one["verdict"], why, told_patients, version, left, cost))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _standing_in_words(verdict: Mapping[str, Any]) -> tuple[str, str, str]:
    """Version, what is left, and the cost; of a site that has not answered, nothing."""
    if verdict["verdict"] not in ("accept", "refuse"):
        return "", "", ""
    version, budget = verdict["version"] or NOT_TOLD, NOT_TOLD
    if verdict["budget"] is not None:
        budget = left_in_words(BudgetLeft.model_validate(verdict["budget"]))
    if verdict.get("cost") is None:
        return version, budget, ""
    from aggregator.costs import Cost, in_words

    cost = Cost.model_validate(verdict["cost"])
    untold = f", time of computing {NOT_TOLD}" if cost.seconds is None else ""
    return version, budget, in_words(cost) + untold
