"""The site's standing, as a dry run tells it to a coordinator whom the site knows."""

import time

from shared.contract import RunContract
from shared.standing import (
    BudgetLeft,
    Standing,
    rounded_down,
    rounded_epsilon,
    rounded_seconds,
)
from site_agent.budget import budget_of
from site_agent.cohort import MAX_SLICES_PER_PATIENT
from site_agent.ledger import Ledger, LedgerError
from site_agent.outbox import Outbox
from site_agent.pace import TIMINGS, run_seconds
from site_agent.quota import DAY_S
from site_agent.settings import SiteSettings


def standing(
    contract: RunContract,
    *,
    version: str,
    bucket: int | None,
    settings: SiteSettings,
    outbox: Outbox,
    idle: bool,
) -> Standing:
    """Version, policy, what is left, and seconds where a ``bucket`` of patients would answer.

    While the worker computes, not ``idle``, nothing is timed: both would be slower, and the time
    wrong.
    """
    seconds = None
    if bucket:
        pace = TIMINGS.pace(contract) if idle else TIMINGS.known(contract)
        if pace is not None:
            slices = min(settings.slices_per_patient, MAX_SLICES_PER_PATIENT)
            policy = settings.policy
            seconds = run_seconds(contract, pace, bucket=bucket, slices=slices, policy=policy)
    return Standing(
        version=version,
        policy=settings.policy.digest(),
        budget=_left(settings, outbox),
        seconds=None if seconds is None else rounded_seconds(seconds),
    )


def _left(settings: SiteSettings, outbox: Outbox) -> BudgetLeft | None:
    policy = settings.policy
    try:
        budget = budget_of(
            Ledger(settings.ledger_path), outbox=outbox, site=settings.name, policy=policy
        )
    except LedgerError:
        return None
    gradients, epsilon = policy.max_gradients, budget.epsilon_left
    if gradients is not None:
        gradients = rounded_down(gradients - budget.gradients_released)
    today = policy.max_requests_a_day - outbox.answered(since=time.time() - DAY_S)
    return BudgetLeft(
        gradients=gradients,
        requests_today=max(today, 0),
        epsilon=None if epsilon is None else rounded_epsilon(epsilon),
    )
