import json
import logging

import pytest

from shared import durable
from shared.accounting import Spent, epsilon_of
from shared.contract import Anchor, Privacy, Probes, RunContract
from shared.messages import ProbeHeader, RefusalCode
from site_agent.incidents import RefusedError, log
from site_agent.ledger import Ledger, LedgerError, charge_for, spent
from site_agent.policy import Policy


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


def charge(ledger, header, **policy):
    return charge_for(header, ledger=ledger, policy=Policy(**policy))


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
    assert ledger.path.read_bytes() == ledger.copy_path.read_bytes()
    for path in (ledger.folder, ledger.path, ledger.copy_path):
        assert path.stat().st_mode & 0o077 == 0


def test_without_epsilon_nothing_is_charged(ledger):
    assert charge(ledger, request(RunContract(name="x"))) is None
    assert not ledger.folder.exists()


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
    ledger.add(written.model_copy(update={"round": 2, "noise_multiplier": 9.0}))
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


def test_no_crash_leaves_less_than_was_released(tmp_path, monkeypatch):
    contract = agreed(rounds=8)
    real = durable.os.fsync
    for crash in range(1, 12):
        ledger, released, calls = Ledger(tmp_path / str(crash)), 0, 0

        def fail(descriptor):
            nonlocal calls
            calls += 1
            if calls == crash:  # noqa: B023
                raise OSError(5, "Input/output error")
            real(descriptor)

        monkeypatch.setattr(durable.os, "fsync", fail)
        round = 1
        while released < 3:
            try:
                charge(ledger, request(contract, round=round))
            except OSError:
                assert len(Ledger(ledger.folder).charges()) in (released, released + 1)
                continue
            released, round = released + 1, round + 1
            held = Ledger(ledger.folder)
            assert len(held.charges()) == released
            assert held.path.read_bytes() == held.copy_path.read_bytes()
        monkeypatch.undo()
        assert calls > crash, "the crash did happen"


@pytest.mark.parametrize("which", ["path", "copy_path"])
@pytest.mark.parametrize("how", ["empty", "cut", "edited", "not json", "removed", "set back"])
def test_damage_stops_all_releases_and_is_named(ledger, which, how):
    contract = agreed(rounds=5)
    for round in (1, 2):
        charge(ledger, request(contract, round=round))
    old = ledger.path.read_bytes()
    for round in (3, 4):
        charge(ledger, request(contract, round=round))
    path, whole = getattr(ledger, which), ledger.path.read_bytes()
    if how == "removed":
        path.unlink()
    else:
        damaged = {
            "empty": b"",
            "cut": whole[:-40],
            "edited": whole.replace(b'"sampling":1', b'"sampling":0.1', 1),
            "not json": b"\xff\x00",
            "set back": old,
        }[how]
        assert damaged != whole
        path.write_bytes(damaged)
    left = {file: file.read_bytes() for file in ledger.folder.iterdir()}
    for round in (1, 5):
        with pytest.raises(RefusedError, match=r"privacy ledger: .*charges\.json|copy\.json") as no:
            charge(ledger, request(contract, round=round))
        assert no.value.code == RefusalCode.INTERNAL
    with pytest.raises(LedgerError):
        ledger.charges()
    assert {file: file.read_bytes() for file in ledger.folder.iterdir()} == left
    # The fix that the text names: the file that is whole in the place of both.
    for file in (ledger.path, ledger.copy_path):
        file.write_bytes(whole)
    charge(ledger, request(contract, round=5))
    assert len(ledger.charges()) == 5


def test_a_file_that_cannot_be_read_is_no_empty_ledger(ledger):
    ledger.path.mkdir(parents=True)
    with pytest.raises(LedgerError, match="cannot be read"):
        ledger.charges()


def test_files_hold_nothing_but_charges(ledger):
    charge(ledger, request(agreed()))
    document = json.loads(ledger.path.read_text())
    assert set(document) == {"version", "charges", "sha256"}
    assert set(document["charges"][0]) == {
        *("contract", "name", "round", "attempt"),
        *("noise_multiplier", "sampling", "charged"),
    }


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
