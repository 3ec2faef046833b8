"""Sites that lie: what one bad site of five costs the anchor, and which lies are not even taken.

The last of the sites answers every request for local steps with a lie (``lies.py``). Those that are
no honest answer by their form must be rejected, and the round completes without them. Of the
others, finite and as long as is taken, the cost is measured: how much worse the anchor does on
patients whom no site has. Some are told to a plain mean too: that they do harm there shows that
they could. In a secure sum a lie cannot be seen, and none of this holds.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aggregator.admission import Rejected, admit
from aggregator.attacks.lies import PLAUSIBLE, STRUCTURAL, Lie, Vantage
from aggregator.distill.anchor import averaged, descend
from aggregator.distill.directions import free_network
from aggregator.exchange import Exchange
from aggregator.foundation import read_prior
from aggregator.simulate import Split, in_process, open_hospitals
from shared.contract import Privacy, RunContract
from shared.messages import (
    FloatArray,
    Message,
    ProbeHeader,
    SummaryHeader,
    decode,
    encode,
    payload_digest,
    probe_batch,
)
from shared.release.progress import progress
from shared.training import evaluate
from shared.trajectory import step_bound

SITES = 5
ROUNDS = 2
"""At most: a liar has shown by then what it can do."""
CONTROLS = ("sign-flipped", "random", "huge-claim")
"""Lies that are told to a plain mean too."""
EVALUATION_SEED = 2_511


Rule = Callable[..., Tensor]
"""``rule(values, patients=...)``: from the sites' (1, D) answers to what is used as their mean."""


def plain_mean(values: Sequence[Tensor], *, patients: Sequence[int]) -> Tensor:
    """The mean (1, D) weighted by the patients that sites say they have: no rule against lies."""
    shares = torch.tensor([float(count) for count in patients])
    return torch.stack(list(values)).mul(shares[:, None, None] / shares.sum()).sum(0)


@dataclass
class Trial:
    """The anchor's rounds under one lie and one rule; ``problems`` are the lies not taken."""

    contract: RunContract
    start: Tensor  # (D,)
    ask: Callable[[bytes, int], Mapping[str, bytes]]
    lie: Lie | None = None
    rule: Rule = averaged
    problems: list[str] = field(default_factory=list)

    def anchor(self) -> Tensor:
        """The weights (D,) after all rounds."""
        weights, earlier = self.start, b""
        for round in range(1, self.contract.anchor.rounds + 1):
            asked = weights[None].cpu().numpy()
            request = probe_batch(
                contract=self.contract,
                round=round,
                kind="local-steps",
                network="anchor",
                weights=asked,
            )
            payload = encode(request)
            answers = dict(self.ask(payload, round))
            *_, (_, honest) = answers.items()
            self._lie(answers, earlier)
            earlier = honest
            mean = self._taken(answers, request, asked, payload_digest(payload))
            weights = descend(weights, mean[0], at_most=step_bound(self.contract))
        return weights

    def _lie(self, answers: dict[str, bytes], earlier: bytes) -> None:
        if self.lie is None:
            return
        *others, liar = answers
        own = decode(answers[liar])
        assert isinstance(own.header, SummaryHeader)
        vantage = Vantage(
            header=own.header,
            values=own.arrays["values"],
            others=tuple(decode(answers[name]).arrays["values"] for name in others),
            earlier=earlier or answers[others[0]],
            longest=self.contract.row_bound("local-steps"),
        )
        answers[liar] = self.lie(vantage)

    def _taken(
        self,
        answers: Mapping[str, bytes],
        request: Message,
        asked: FloatArray,
        request_digest: str,
    ) -> Tensor:
        assert isinstance(request.header, ProbeHeader)
        values, patients = [], []
        for site, answer in answers.items():
            try:
                taken = admit(
                    answer,
                    site=site,
                    request=request.header,
                    request_digest=request_digest,
                    weights=asked,
                )
            except Rejected as reason:
                self.problems.append(str(reason))
                continue
            values.append(torch.from_numpy(taken.values))
            patients.append(taken.patients_at_least)
        return self.rule(values, patients=patients)


def measure(
    *,
    contract: RunContract,
    data: Path,
    split: Split,
    public: Path | None = None,
    sequence: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """What each lie of one site of five costs the anchor: rows, and the figures that decide.

    Clear and whole descents are asked for, whatever the contract does to them, in two rounds at
    most. All hospitals' training patients are dealt to five sites. A row has the lie, the rule, how
    often the lie was rejected and why, the anchor's PSNR on the patients kept apart (mean over
    patients, dB) and the ``loss_db`` against the same rule without a lie. Structural lies are told
    under the robust rule alone: rejected, they all cost what four sites are less than five.

    Raises ``ReaderError``, ``HospitalError`` or ``FoundationError``.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    contract = _clear(contract)
    trials: list[tuple[str, str, Lie | None, Rule]] = [
        (name, "robust", lie, averaged) for name, lie in STRUCTURAL.items()
    ]
    trials += [("none", "robust", None, averaged), ("none", "plain", None, plain_mean)]
    trials += [(name, "robust", lie, averaged) for name, lie in PLAUSIBLE.items()]
    trials += [(name, "plain", PLAUSIBLE[name], plain_mean) for name in CONTROLS]
    with tempfile.TemporaryDirectory() as folder, progress("lies", unit="told", quiet=quiet) as at:
        hospitals, apart = open_hospitals(
            data,
            contract=contract,
            homes=Path(folder) / "homes",
            split=split,
            sequence=sequence,
            dealt=SITES,
        )
        holdout = [torch.from_numpy(patient) for patient in apart]
        start = free_network(
            contract, read_prior(contract, public), device=device, on_step=lambda *_: None
        )

        def psnr(weights: Tensor) -> float:
            score = evaluate(
                weights=weights,
                network=contract.anchor_network,
                patients=holdout,
                task=contract.task,
                seed=EVALUATION_SEED,
                device=device,
            )
            return float(np.mean(score.psnr_db))

        def exchange(number: int) -> Exchange:
            outboxes = Path(folder) / f"outboxes-{number}"
            return in_process(hospitals, modality=contract.task.modality, outboxes=outboxes)

        names, kept = [one.name for one in hospitals], dict[str, Mapping[str, bytes]]()
        rows = []
        for number, (name, label, lie, rule) in enumerate(trials):
            ask = _remembering(exchange(number), names, kept)
            trial = Trial(contract, start, ask, lie=lie, rule=rule)
            value = psnr(trial.anchor())
            rows.append(
                {
                    "lie": name,
                    "rule": label,
                    "rejected": len(trial.problems),
                    "reason": trial.problems[0] if trial.problems else None,
                    "psnr_db": value,
                }
            )
            at(number + 1, len(trials))
        return _figures(contract, rows, start_db=psnr(start), patients=len(holdout))


def _clear(contract: RunContract) -> RunContract:
    anchor = contract.anchor.model_copy(update={"rounds": min(ROUNDS, contract.anchor.rounds)})
    plain = {"granularity": "cohort", "members": (), "privacy": Privacy(), "anchor": anchor}
    return contract.model_copy(update=plain)


def _remembering(
    exchange: Exchange, sites: Sequence[str], kept: dict[str, Mapping[str, bytes]]
) -> Callable[[bytes, int], Mapping[str, bytes]]:
    """Asks the sites what they have not been asked before: the first round is every trial's."""

    def ask(payload: bytes, round: int) -> Mapping[str, bytes]:
        digest = payload_digest(payload)
        if digest not in kept:
            kept[digest] = exchange(payload, round, sites)
        return kept[digest]

    return ask


def _figures(
    contract: RunContract, rows: list[dict[str, Any]], *, start_db: float, patients: int
) -> dict[str, Any]:
    honest = {row["rule"]: row["psnr_db"] for row in rows if row["lie"] == "none"}
    for row in rows:
        row["loss_db"] = honest[row["rule"]] - row["psnr_db"]
    structural = [row for row in rows if row["lie"] in STRUCTURAL]
    robust = [row["loss_db"] for row in rows if row["rule"] == "robust"]
    plain = [row["loss_db"] for row in rows if row["rule"] == "plain"]
    return {
        "contract_digest": contract.digest(),
        "sites": SITES,
        "rounds": contract.anchor.rounds,
        "patients_apart": patients,
        "start_db": start_db,
        "rows": rows,
        "structural_rejected": sum(row["rejected"] == contract.anchor.rounds for row in structural),
        "structural": len(structural),
        "most_lost_db": max(robust),
        "most_lost_by_plain_mean_db": max(plain),
        "robust_rules_cost_db": honest["plain"] - honest["robust"],
    }
