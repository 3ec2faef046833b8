"""What was released, and what it cost the site's patients in privacy, for people and machines."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from shared.accounting import epsilon_of
from site_agent.ledger import Charge, Ledger, spent
from site_agent.outbox import Outbox
from site_agent.policy import Policy


@dataclass(frozen=True)
class RunCost:
    """The releases to one contract."""

    name: str
    contract: str
    """The contract's digest."""
    releases: int
    releases_today: int
    """Of them, those of the last 24 hours."""
    gradients: int
    epsilon: float | None
    """Of these releases by themselves; None where they have no noise."""
    last: str
    """When the last of them was charged: ISO 8601, UTC."""


@dataclass(frozen=True)
class Budget:
    """What was spent and what is left, all at policy's delta."""

    site: str
    delta: float
    epsilon_spent: float
    """Of all releases together: usually less than the sum of the runs'."""
    epsilon_budget: float | None
    epsilon_left: float | None
    releases_today: int
    """Answers of the last 24 hours, noised or not."""
    gradients_released: int
    """In all answers, noised or not; at granularity patient each patient's."""
    max_gradients: int | None
    clear_runs_allowed: bool
    """Whether the policy lets in runs without noise, which no epsilon bounds."""
    contracts: tuple[RunCost, ...]

    def as_json(self) -> dict[str, Any]:
        """The same for machines."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """The same for people."""
        yield f"{self.site}: what noised answers have cost every patient, at delta {self.delta:g}"
        yield f"  spent: epsilon {self.epsilon_spent:.3g}"
        if self.epsilon_left is None:
            yield "  budget: none; set policy.epsilon_budget to limit all runs together"
        else:
            yield f"  budget: epsilon {self.epsilon_budget:g}, left {self.epsilon_left:.3g}"
        limit = "no limit" if self.max_gradients is None else f"of {self.max_gradients}"
        yield (
            f"  released: {self.gradients_released} gradients and descents, noised or not; {limit}"
        )
        yield f"  in the last 24 hours: {_answers(self.releases_today)}"
        for run in self.contracts:
            cost = "no noise" if run.epsilon is None else f"epsilon {run.epsilon:.3g} by itself"
            yield (
                f"  {run.name} ({run.contract[:16]}): {_answers(run.releases)}, "
                f"{run.gradients} gradients, {cost}, last on {run.last[:10]}"
            )
        if len([run for run in self.contracts if run.epsilon is not None]) > 1:
            yield "Runs together usually cost less than the sum of what each costs by itself."
        if self.clear_runs_allowed:
            yield (
                "Answers without noise are allowed: no epsilon bounds what they tell. "
                "policy.max_epsilon or policy.epsilon_budget ends them."
            )


def budget_of(ledger: Ledger, *, outbox: Outbox, site: str, policy: Policy) -> Budget:
    """What ``ledger`` and ``outbox`` say under ``policy``.

    Raises ``LedgerError`` where the ledger is damaged, or lacks an answer of the outbox.
    """
    ledger.refuse_unrecorded(outbox)
    charges = ledger.charges()
    runs: dict[str, list[Charge]] = {}
    for charge in charges:
        runs.setdefault(charge.contract, []).append(charge)
    total = epsilon_of(spent(charges), delta=policy.delta)
    limit = policy.epsilon_budget
    return Budget(
        site=site,
        delta=policy.delta,
        epsilon_spent=total,
        epsilon_budget=limit,
        epsilon_left=None if limit is None else max(limit - total, 0.0),
        releases_today=_today(charges),
        gradients_released=sum(charge.gradients for charge in charges),
        max_gradients=policy.max_gradients,
        clear_runs_allowed=limit is None and policy.max_epsilon is None,
        contracts=tuple(
            RunCost(
                name=of_run[-1].name,
                contract=digest,
                releases=len(of_run),
                releases_today=_today(of_run),
                gradients=sum(charge.gradients for charge in of_run),
                epsilon=epsilon_of(spent(of_run), delta=policy.delta) if spent(of_run) else None,
                last=of_run[-1].charged.isoformat(),
            )
            for digest, of_run in runs.items()
        ),
    )


def _today(charges: Sequence[Charge]) -> int:
    since = datetime.now(UTC) - timedelta(hours=24)
    return sum(charge.charged >= since for charge in charges)


def _answers(count: int) -> str:
    return "1 answer" if count == 1 else f"{count} answers"
