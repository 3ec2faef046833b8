import torch

from aggregator.distill.bank import Bank


def filled() -> Bank:
    bank = Bank()
    for number in (5, 6, 7):
        bank.add(round=number, weights=torch.rand(2, 4), targets=torch.rand(2, 4))
    return bank


def test_only_the_last_requests_are_recent() -> None:
    assert [entry.round for entry in filled().recent(2)] == [6, 6, 7, 7]
    assert len(filled().recent(9)) == 6


def test_a_bank_survives_its_state() -> None:
    bank = filled()
    back = Bank.restored(bank.state())
    assert [entry.round for entry in back.entries] == [entry.round for entry in bank.entries]
    for one, other in zip(bank.entries, back.entries, strict=True):
        assert torch.equal(one.weights, other.weights)
        assert torch.equal(one.target, other.target)
    assert Bank.restored(Bank().state()).entries == []
