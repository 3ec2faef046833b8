from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shared.accounting import Spent, epsilon_of
from site_agent.budget import budget_of
from site_agent.ledger import Charge, Ledger, LedgerError
from site_agent.outbox import Outbox
from site_agent.policy import Policy

NOTHING_SENT = Outbox(Path("/nowhere"))


@pytest.fixture
def ledger(tmp_path):
    """Two rounds of one contract, one of another."""
    ledger = Ledger(tmp_path)
    for contract, name, round in (("ab", "ct", 1), ("cd", "mr", 1), ("ab", "ct", 2)):
        add(ledger, contract, name, round)
    return ledger


def add(ledger, contract, name, round, **other):
    about = {
        "gradients": 3,
        "noise_multiplier": 2.0 if name == "ct" else 4.0,
        "charged": datetime(2025, 11, 20 + round, tzinfo=UTC),
    }
    fresh = Charge(
        contract=contract * 32,
        name=name,
        round=round,
        attempt=1,
        sampling=1.0,
        **{**about, **other},
    )
    ledger.settle(fresh, allowed=lambda charges: None)


def test_what_is_left_and_which_run_took_the_rest(ledger):
    budget = budget_of(
        ledger, outbox=NOTHING_SENT, site="site-a", policy=Policy(epsilon_budget=8.0)
    )
    total = epsilon_of([Spent(2.0, releases=2), Spent(4.0)], delta=1e-5)
    assert budget.epsilon_spent == pytest.approx(total)
    assert budget.epsilon_left == pytest.approx(8 - total)
    ct, mr = budget.contracts
    assert (ct.name, ct.releases, mr.name, mr.releases) == ("ct", 2, "mr", 1)
    assert ct.epsilon == pytest.approx(epsilon_of([Spent(2.0, releases=2)], delta=1e-5))
    assert max(ct.epsilon, mr.epsilon) < budget.epsilon_spent < ct.epsilon + mr.epsilon
    assert ct.last == "2025-11-22T00:00:00+00:00"
    text = "\n".join(budget.lines())
    assert f"spent: epsilon {total:.3g}" in text
    assert f"budget: epsilon 8, left {8 - total:.3g}" in text
    assert (
        "ct (abababababababab): 2 answers, 6 gradients" in text
        and "mr (cdcdcdcdcdcdcdcd): 1 answer," in text
    )
    assert "without noise" not in text


def test_no_budget_is_said_to_be_none(ledger):
    budget = budget_of(ledger, outbox=NOTHING_SENT, site="site-a", policy=Policy())
    assert budget.epsilon_left is None and budget.clear_runs_allowed
    text = "\n".join(budget.lines())
    assert "budget: none" in text and "Answers without noise are allowed" in text
    assert not budget_of(
        ledger, outbox=NOTHING_SENT, site="a", policy=Policy(max_epsilon=3.0)
    ).clear_runs_allowed


def test_a_budget_that_was_lowered_is_never_negative(ledger):
    budget = budget_of(
        ledger, outbox=NOTHING_SENT, site="site-a", policy=Policy(epsilon_budget=0.5)
    )
    assert budget.epsilon_left == 0
    assert budget.epsilon_spent > 0.5


def test_nothing_spent_is_nothing(tmp_path):
    budget = budget_of(
        Ledger(tmp_path / "none"), outbox=NOTHING_SENT, site="a", policy=Policy(epsilon_budget=2.0)
    )
    assert (budget.epsilon_spent, budget.epsilon_left, budget.contracts) == (0, 2.0, ())
    assert budget.as_json()["contracts"] == ()


def test_what_was_released_is_counted_noised_or_not(ledger):
    before = budget_of(ledger, outbox=NOTHING_SENT, site="a", policy=Policy())
    for round, hours in ((1, 25), (2, 23)):
        then = datetime.now(UTC) - timedelta(hours=hours)
        add(ledger, "ef", "clear", round, gradients=4, noise_multiplier=None, charged=then)
    budget = budget_of(ledger, outbox=NOTHING_SENT, site="a", policy=Policy(max_gradients=20))
    assert (budget.gradients_released, budget.max_gradients) == (9 + 8, 20)
    assert (budget.releases_today, budget.epsilon_spent) == (1, before.epsilon_spent)
    clear = budget.contracts[-1]
    assert (clear.releases, clear.releases_today, clear.gradients, clear.epsilon) == (2, 1, 8, None)
    text = "\n".join(budget.lines())
    assert "17 gradients and descents, noised or not; of 20" in text
    assert "in the last 24 hours: 1 answer" in text
    assert "clear (efefefefefefefef): 2 answers, 8 gradients, no noise" in text


def test_an_answer_that_the_ledger_lacks_is_told(ledger, tmp_path):
    outbox = Outbox(tmp_path / "outbox")
    outbox.store(b"answer", contract_digest="ab" * 32, round=2)
    assert budget_of(ledger, outbox=outbox, site="a", policy=Policy()).contracts
    outbox.store(b"answer", contract_digest="ab" * 32, round=3)
    with pytest.raises(LedgerError, match="lacks 1 answers that the outbox holds"):
        budget_of(ledger, outbox=outbox, site="a", policy=Policy())
