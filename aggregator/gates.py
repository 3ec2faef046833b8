"""What a finished run must pass before it is published; whatever is not known to pass, fails.

- ``utility``: the pairs train to at least as much as their prior and as the best set that needed no
  hospital, by the contract's margin. Of a contract that is judged at the hospitals, by their own
  figures, which at least half of them must have given; of any other, by ``utility.json``, where it
  is there or ``aggregator.toml`` wants it.
- ``copying``: of a contract that is judged at the hospitals, no image is almost the real one that
  it was started from, public or consented. A phantom is nobody.
- ``veto``: where the contract asks for it, every hospital was asked, and none objects.

What they found is ``gates.json`` in the run's folder, bound to the pairs and to what was measured.
Nothing here computes on images.
"""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, Field, ValidationError

from aggregator.hospital_table import EVALUATION, Judgement, hospital_table, read_judgement
from aggregator.runs import RunError
from aggregator.utility import UTILITY, GateError, gate, refuse_unworthy
from shared.contract import Hex32, RunContract
from shared.durable import write_durably
from shared.frozen import Frozen

GATES = "gates.json"
QUORUM = 0.5
"""Share of the hospitals whose figures a utility table needs."""


class Finding(Frozen):
    """What one gate says, about which file, and what to do."""

    gate: str
    passed: bool
    file: str
    reason: str
    hint: str = ""
    figures: dict[str, Any] = Field(default_factory=dict)


class GateReport(Frozen):
    """All that the gates said of a run, when, at whose word."""

    contract_digest: Hex32
    pairs_sha256: Hex32
    evidence: Hex32 = Field(description="SHA-256 of what the gates read")
    findings: tuple[Finding, ...]
    at: AwareDatetime
    by: str

    @property
    def passed(self) -> bool:
        """Whether none refuses."""
        return all(one.passed for one in self.findings)

    def refuse_failed(self) -> None:
        """Raises ``GateError`` with the first gate that refuses."""
        for one in self.findings:
            if not one.passed:
                raise GateError(one.file, one.reason, one.hint)


def run_gates(
    run: Path, contract: RunContract, *, pairs_sha256: str, required: bool, by: str
) -> GateReport:
    """Asks all gates, and leaves what they say in the run's folder.

    ``required``: utility must have been measured. Raises ``RunError`` or ``JudgementError`` where a
    file of the run cannot be read.
    """
    report = GateReport(
        contract_digest=contract.digest(),
        pairs_sha256=pairs_sha256,
        evidence=evidence_of(run),
        findings=tuple(_findings(run, contract, pairs_sha256=pairs_sha256, required=required)),
        at=datetime.now(UTC).replace(microsecond=0),
        by=by,
    )
    write_durably(run / GATES, report.model_dump_json(indent=2).encode())
    return report


def read_gates(run: Path) -> GateReport | None:
    """What the gates said last; None where they were not asked, or what they said is damaged."""
    try:
        return GateReport.model_validate_json((run / GATES).read_bytes())
    except (OSError, ValidationError):
        return None


def evidence_of(run: Path) -> str:
    """SHA-256 (hex) of what was measured of a run, as it is now."""
    content = hashlib.sha256()
    for name in (UTILITY, EVALUATION):
        path = run / name
        content.update(hashlib.sha256(path.read_bytes()).digest() if path.exists() else b"absent")
    return content.hexdigest()


def measured(path: Path) -> dict[str, Any] | None:
    """A table in a run's folder; None where there is none. Raises ``RunError``."""
    try:
        table = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        table = None
    if not isinstance(table, dict):
        raise RunError(f"{path} is damaged: measure again, or move it away")
    return table


def _findings(
    run: Path, contract: RunContract, *, pairs_sha256: str, required: bool
) -> Iterator[Finding]:
    plan = contract.evaluation
    judgement = read_judgement(run) if plan.sites else None
    yield _utility(run, contract, pairs_sha256=pairs_sha256, required=required)
    if not plan.sites:
        return
    known = judgement is not None and (judgement.contract_digest, judgement.pairs_sha256) == (
        contract.digest(),
        pairs_sha256,
    )
    if judgement is None or not known:
        yield Finding(
            gate="hospitals",
            passed=False,
            file=EVALUATION,
            reason="the hospitals have not judged these pairs",
            hint="launch the contract again: it asks them",
        )
        return
    yield _at_hospitals(judgement, contract)
    yield _copying(judgement, contract)
    if plan.veto:
        yield _veto(judgement, contract)


def _utility(run: Path, contract: RunContract, *, pairs_sha256: str, required: bool) -> Finding:
    table = measured(run / UTILITY)
    try:
        decided = refuse_unworthy(
            table,
            contract_digest=contract.digest(),
            pairs_sha256=pairs_sha256,
            required=required,
            margin_db=contract.evaluation.margin_db,
        )
    except GateError as error:
        problem = str(error).removeprefix(f"{error.file}: ")
        return Finding(
            gate="utility", passed=False, file=error.file, reason=problem, hint=error.hint
        )
    if decided is None:
        return Finding(gate="utility", passed=True, file=UTILITY, reason="not measured, not asked")
    return Finding(
        gate="utility",
        passed=True,
        file=UTILITY,
        reason=decided.reason,
        figures=decided.figures,
    )


def _at_hospitals(judgement: Judgement, contract: RunContract) -> Finding:
    """Utility by the hospitals' own figures, whatever ``utility.json`` says."""
    enough = max(1, round(QUORUM * len(judgement.asked)))
    if len(judgement.figures) < enough:
        return Finding(
            gate="hospitals",
            passed=False,
            file=EVALUATION,
            reason=f"{len(judgement.figures)} of {len(judgement.asked)} hospitals gave figures"
            + _why(judgement),
            hint="mend the sites and launch the contract again",
        )
    table = hospital_table(judgement, contract, result={}) or {}
    decided = gate(table, margin_db=contract.evaluation.margin_db)
    return Finding(
        gate="hospitals",
        passed=decided.passed,
        file=EVALUATION,
        reason=decided.reason if decided.passed else f"not published: {decided.reason}",
        figures=decided.figures,
    )


def _copying(judgement: Judgement, contract: RunContract) -> Finding:
    limit, alike = contract.evaluation.max_source_ssim, judgement.source_ssim
    figures = {"source_ssim": list(alike), "source_ncc": list(judgement.source_ncc)}
    if contract.prior.kind == "phantom":
        return Finding(
            gate="copying",
            passed=True,
            file=EVALUATION,
            reason="the images were started from phantoms, which are nobody",
            figures=figures,
        )
    copies = [number for number, one in enumerate(alike) if not one <= limit]
    named = ", ".join(map(str, copies))
    return Finding(
        gate="copying",
        passed=bool(alike) and not copies,
        file=EVALUATION,
        reason=f"not published: images {named} are copies of what they were started from"
        if copies
        else f"SSIM to what they were started from at most {max(alike, default=0):.2f}",
        figures=figures,
    )


def _veto(judgement: Judgement, contract: RunContract) -> Finding:
    told, objections = judgement.verdicts, []
    for site in judgement.asked:
        if site not in told:
            if contract.evaluation.silent == "veto":
                objections.append(f"{site} gave no verdict")
        elif not told[site].passed:
            numbers = ", ".join(map(str, told[site].too_alike))
            objections.append(
                f"{site} objects"
                + (f" to images {numbers}" if numbers else "")
                + f" (ratios {told[site].ratio_ssim:g}, {told[site].ratio_ncc:g})"
            )
    if not told:
        objections = objections or ["no hospital gave a verdict"]
    ratios = {site: [one.ratio_ssim, one.ratio_ncc] for site, one in told.items()}
    return Finding(
        gate="veto",
        passed=not objections,
        file=EVALUATION,
        reason=f"not published: {'; '.join(objections)}{_why(judgement)}"
        if objections
        else f"{len(told)} of {len(judgement.asked)} hospitals asked, none objects",
        hint="change the contract, or mend the sites that were silent" if objections else "",
        figures={"ratios": ratios},
    )


def _why(judgement: Judgement) -> str:
    told = "; ".join(f"{site}: {reason}" for site, reason in judgement.problems.items())
    return f" ({told})" if told else ""
