import contextlib
import logging
import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared.accounting import Spent, epsilon_of
from shared.contract import Anchor, Privacy, Probes, RunContract
from shared.messages import ProbeHeader, RefusalCode
from site_agent.incidents import RefusedError, log
from site_agent.ledger import Ledger, LedgerError, charge_for, spent
from site_agent.outbox import Outbox
from site_agent.policy import Policy

NOTHING_SENT = Outbox(Path("/nowhere"))


def agreed(name="ct", *, epsilon=3.0, rounds=4, sampling=1.0, delta=1e-5):
    return RunContract(
        name=name,
        probes=Probes(requests=0),
        anchor=Anchor(rounds=rounds, descent="patient"),
        privacy=Privacy(epsilon=epsilon, delta=delta, sampling=sampling),
    )


def request(contract, round=1, attempt=1):
    return ProbeHeader(
        contract=contract,
        contract_digest=contract.digest(),
        round=round,
        attempt=attempt,
        kind="local-steps",
        network="anchor",
    )


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


def charge(ledger, header, *, gradients=1, outbox=NOTHING_SENT, **policy):
    return charge_for(
        header, gradients=gradients, ledger=ledger, outbox=outbox, policy=Policy(**policy)
    )


def cost(ledger, delta=1e-5):
    return epsilon_of(spent(ledger.charges()), delta=delta)


def test_a_release_is_on_the_disk_before_it_is_made(ledger):
    contract = agreed(sampling=0.5)
    assert ledger.charges() == ()
    multiplier = charge(ledger, request(contract, round=2))
    assert multiplier == contract.noise_multiplier
    (written,) = Ledger(ledger.folder).charges()
    assert (written.contract, written.name) == (contract.digest(), "ct")
    assert (written.round, written.attempt) == (2, 1)
    assert (written.noise_multiplier, written.sampling) == (multiplier, 0.5)
    assert [path.name for path in ledger.folder.iterdir()] == ["ledger.sqlite"]
    for path in (ledger.folder, ledger.path):
        assert path.stat().st_mode & 0o077 == 0


def test_without_epsilon_gradients_alone_are_charged(ledger):
    assert charge(ledger, request(RunContract(name="x")), gradients=4, epsilon_budget=1.0) is None
    (written,) = ledger.charges()
    assert (written.gradients, written.noise_multiplier) == (4, None)
    assert cost(ledger) == 0


def test_an_attempt_is_charged_once_and_each_attempt_by_itself(ledger):
    contract = agreed()
    for _ in range(3):
        charge(ledger, request(contract))
    assert len(ledger.charges()) == 1
    charge(ledger, request(contract, attempt=2))
    charge(ledger, request(contract, round=2))
    charge(ledger, request(agreed("mr")))
    assert len(ledger.charges()) == 4


def test_an_attempt_charged_before_keeps_the_noise_it_was_charged_with(ledger):
    contract = agreed()
    charge(ledger, request(contract))
    (written,) = ledger.charges()
    other = written.model_copy(update={"round": 2, "noise_multiplier": 9.0})
    ledger.settle(other, allowed=lambda charges: None)
    assert charge(ledger, request(contract, round=2)) == 9.0
    assert len(ledger.charges()) == 2


def test_costs_of_several_contracts_are_mixed(ledger):
    contracts = agreed(rounds=3), agreed("mr", epsilon=1.0, sampling=0.3, rounds=2)
    for contract in contracts:
        for round in range(1, contract.rounds + 1):
            charge(ledger, request(contract, round=round))
    parts = [
        Spent(contract.noise_multiplier, contract.privacy.sampling, contract.rounds)
        for contract in contracts
    ]
    expected = epsilon_of(parts, delta=1e-6)
    assert cost(ledger, delta=1e-6) == pytest.approx(expected)
    assert cost(ledger) < 4.0


@pytest.mark.parametrize("sampling", [1.0, 0.4])
def test_a_budget_holds_exactly_the_contract_it_is_meant_for(ledger, sampling):
    contract = agreed(epsilon=3.0, sampling=sampling)
    for round in range(1, 5):
        charge(ledger, request(contract, round=round), epsilon_budget=3.0)
    assert 2.99 < cost(ledger) <= 3.0
    with pytest.raises(RefusedError) as refused:
        charge(ledger, request(contract, round=4, attempt=2), epsilon_budget=3.0)
    assert refused.value.code == RefusalCode.BUDGET_SPENT
    assert "policy.epsilon_budget is 3" in str(refused.value)
    assert len(ledger.charges()) == 4
    # What was charged may still be answered again.
    assert charge(ledger, request(contract, round=4), epsilon_budget=3.0)


def test_a_contract_that_cannot_be_finished_is_not_begun(ledger):
    first, second = agreed(epsilon=3.0), agreed("mr", epsilon=3.0)
    for round in range(1, 5):
        charge(ledger, request(first, round=round), epsilon_budget=4.0)
    one_more = [*spent(ledger.charges()), Spent(second.noise_multiplier)]
    assert epsilon_of(one_more, delta=1e-5) < 4.0, "a first release would fit"
    with pytest.raises(RefusedError, match="4 more of mr") as refused:
        charge(ledger, request(second), epsilon_budget=4.0)
    assert refused.value.code == RefusalCode.BUDGET_SPENT
    assert len(ledger.charges()) == 4
    assert charge(ledger, request(second), epsilon_budget=4.5)


def test_a_contract_once_begun_goes_on_as_long_as_the_budget_lasts(ledger):
    contract = agreed(epsilon=3.0)
    charge(ledger, request(contract), epsilon_budget=3.0)
    charge(ledger, request(contract, attempt=2), epsilon_budget=3.0)
    charge(ledger, request(contract, round=2), epsilon_budget=3.0)
    charge(ledger, request(contract, round=3), epsilon_budget=3.0)
    with pytest.raises(RefusedError, match="1 more of ct"):
        charge(ledger, request(contract, round=4), epsilon_budget=3.0)


def test_the_budget_is_counted_at_the_policys_delta(ledger):
    contract = agreed(epsilon=3.0, delta=1e-5)
    with pytest.raises(RefusedError, match="epsilon_budget"):
        charge(ledger, request(contract), epsilon_budget=3.0, delta=1e-6)
    assert charge(ledger, request(contract), epsilon_budget=3.0, delta=1e-4)


_CRASHES = """
import os, signal, sqlite3, sys
from pathlib import Path
from tests.site_agent.test_ledger import agreed, charge, request
from site_agent.ledger import Ledger

contract, real, connect = agreed(rounds=6), os.fsync, sqlite3.connect
contract.noise_multiplier

def child(folder, released, crash):
    steps = 0

    def step(*_):
        nonlocal steps
        steps += 1
        if steps == crash:
            os.kill(os.getpid(), signal.SIGKILL)

    def traced(*args, **named):
        made = connect(*args, **named)
        made.set_trace_callback(step)
        made.set_progress_handler(step, 40)
        return made

    sqlite3.connect = traced
    os.fsync = lambda descriptor: (step(), real(descriptor), step())
    for round in (1, 2, 3):
        charge(Ledger(folder), request(contract, round=round))
        step()
        with open(released, "ab", buffering=0) as file:
            file.write(b"x")
    os._exit(0)

for crash in range(1, 2000):
    folder, released = Path(sys.argv[1]) / str(crash), Path(sys.argv[1]) / f"{crash}.released"
    pid = os.fork()
    if not pid:
        child(folder, released, crash)
    _, status = os.waitpid(pid, 0)
    truth = released.stat().st_size if released.exists() else 0
    held = [one.round for one in Ledger(folder).charges()]
    assert held in (list(range(1, truth + 1)), list(range(1, truth + 2))), (crash, truth, held)
    # And it goes on from there.
    charge(Ledger(folder), request(contract, round=4))
    charge(Ledger(folder), request(contract, round=4))
    assert [one.round for one in Ledger(folder).charges()] == [*held, 4]
    if status == 0:
        break
print(crash - 1, len(held))
"""


def test_no_kill_leaves_less_than_was_released(tmp_path):
    """Killed at each statement, within statements, and before and after each fsync of ours."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _CRASHES, str(tmp_path)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    killed, held = map(int, done.stdout.split())
    assert killed > 40 and held == 3, "the last one was not killed, and lost nothing"


@pytest.mark.parametrize(
    "how", ["empty", "cut", "a page lost", "edited", "a row less", "not sqlite"]
)
def test_damage_stops_all_releases_and_is_named(ledger, how):
    contract = agreed(rounds=5)
    for round in (1, 2, 3, 4):
        charge(ledger, request(contract, round=round))
    whole = ledger.path.read_bytes()
    if how in ("edited", "a row less"):
        statement = {
            "edited": "UPDATE release SET sampling = 0.1 WHERE round = 2",
            "a row less": "DELETE FROM release WHERE round = 2",
        }[how]
        with contextlib.closing(sqlite3.connect(ledger.path)) as connection:
            connection.execute(statement)
            connection.commit()
    else:
        damaged = {
            "empty": b"",
            "cut": whole[:-5000],
            "a page lost": whole[:4096] + b"\0" * 4096 + whole[8192:],
            "not sqlite": b"\xff\x00" * 999,
        }[how]
        ledger.path.write_bytes(damaged)
    for round in (1, 5):
        with pytest.raises(RefusedError, match=r"privacy ledger: .*ledger\.sqlite: ") as refused:
            charge(ledger, request(contract, round=round))
        assert refused.value.code == RefusalCode.INTERNAL
    with pytest.raises(LedgerError, match=r"Restore it from a backup"):
        ledger.charges()
    # The fix that the text names.
    ledger.path.write_bytes(whole)
    charge(ledger, request(contract, round=5))
    assert len(ledger.charges()) == 5


def test_a_ledger_removed_or_set_back_is_found_by_what_left(ledger, tmp_path):
    contract, outbox = agreed(rounds=5), Outbox(tmp_path / "outbox")
    digest = contract.digest()
    for round in (1, 2, 3):
        charge(ledger, request(contract, round=round), outbox=outbox)
        outbox.store(b"answer", contract_digest=digest, round=round)
        if round == 2:
            old = ledger.path.read_bytes()
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(old)
    with pytest.raises(RefusedError, match="lacks 1 answers that the outbox holds"):
        charge(ledger, request(contract, round=4), outbox=outbox)
    ledger.path.unlink()
    with pytest.raises(RefusedError, match="lacks 3 answers"):
        charge(ledger, request(contract, round=4), outbox=outbox)
    assert not ledger.path.exists(), "nothing is begun anew"
    ledger.path.write_bytes(whole)
    assert charge(ledger, request(contract, round=4), outbox=outbox)


def test_gradients_are_counted_in_the_transaction_that_charges_them(ledger):
    clear = RunContract(name="clear", anchor=Anchor(rounds=4))
    for round in (1, 2):
        charge(ledger, request(clear, round=round), gradients=3, max_gradients=7)
    # Charged before: it may be answered again, though no more would fit.
    assert charge(ledger, request(clear, round=2), gradients=3, max_gradients=7) is None
    with pytest.raises(RefusedError, match="3 gradients after 6 released") as refused:
        charge(ledger, request(clear, round=3), gradients=3, max_gradients=8)
    assert refused.value.code == RefusalCode.BUDGET_SPENT
    charge(ledger, request(clear, round=3), gradients=3, max_gradients=9)
    assert sum(one.gradients for one in ledger.charges()) == 9


def test_two_that_charge_at_once_never_pass_the_limit(ledger):
    clear = RunContract(name="clear", anchor=Anchor(rounds=16))

    def attempt(round):
        try:
            charge(ledger, request(clear, round=round), max_gradients=5)
        except RefusedError as error:
            return error.code
        return None

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(attempt, range(1, 17)))
    assert said.count(None) == 5 == len(ledger.charges())
    assert set(said) == {None, RefusalCode.BUDGET_SPENT}


def test_a_file_that_cannot_be_read_is_no_empty_ledger(ledger):
    ledger.path.mkdir(parents=True)
    with pytest.raises(LedgerError, match="cannot be used"):
        ledger.charges()


def test_each_charge_is_in_the_log(ledger, monkeypatch):
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    monkeypatch.setattr(log, "handlers", [handler])
    monkeypatch.setattr(log, "level", logging.INFO)
    log.manager._clear_cache()
    contract = agreed()
    charge(ledger, request(contract))
    charge(ledger, request(contract))
    expected = f"charged noise {contract.noise_multiplier:g}, sampling 1"
    assert len(records) == 1 and expected in records[0]
