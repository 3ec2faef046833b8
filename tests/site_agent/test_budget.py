from datetime import UTC, datetime
from pathlib import Path

import pytest

from shared.accounting import Spent, epsilon_of
from site_agent.budget import budget_of
from site_agent.ledger import Charge, Ledger
from site_agent.outbox import Entry, Outbox
from site_agent.policy import Policy

NOTHING_SENT = Outbox(Path("/nowhere"))


@pytest.fixture
def ledger(tmp_path):
    """Two rounds of one contract, one of another."""
    ledger = Ledger(tmp_path)
    for contract, name, round in (("ab", "ct", 1), ("cd", "mr", 1), ("ab", "ct", 2)):
        ledger.add(
            Charge(
                contract=contract * 32,
                name=name,
                round=round,
                attempt=1,
                noise_multiplier=2.0 if name == "ct" else 4.0,
                sampling=1.0,
                charged=datetime(2026, 11, 20 + round, tzinfo=UTC),
            )
        )
    return ledger


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
    assert ct.last == "2026-11-22T00:00:00+00:00"
    text = "\n".join(budget.lines())
    assert f"spent: epsilon {total:.3g}" in text
    assert f"budget: epsilon 8, left {8 - total:.3g}" in text
    assert "ct (abababababababab): 2 answers" in text and "mr (cdcdcdcdcdcdcdcd): 1 answer," in text
    assert "without noise" not in text


def test_no_budget_is_said_to_be_none(ledger):
    budget = budget_of(ledger, outbox=NOTHING_SENT, site="site-a", policy=Policy())
    assert budget.epsilon_left is None and budget.clear_runs_allowed
    text = "\n".join(budget.lines())
    assert "budget: none" in text and "Answers without noise are allowed and not counted" in text
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


def test_what_was_released_is_counted_noised_or_not(ledger, tmp_path):
    outbox = Outbox(tmp_path / "outbox")
    for round, gradients in ((1, 4), (2, 12)):
        entry = Entry(
            contract="ab" * 32,
            round=round,
            answered=datetime(2026, 11, 20, tzinfo=UTC),
            kind="gradients",
            shape=(gradients, 2),
            gradients=gradients,
            seconds=1.0,
            bytes=6,
            digest="cd" * 32,
        )
        outbox.store(b"answer", contract_digest="ab" * 32, round=round, entry=entry)
    budget = budget_of(ledger, outbox=outbox, site="a", policy=Policy(max_gradients=20))
    assert (budget.gradients_released, budget.max_gradients) == (16, 20)
    assert "16 gradients and descents, noised or not; of 20" in "\n".join(budget.lines())
