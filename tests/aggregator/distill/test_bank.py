import pytest
import torch

from aggregator.distill.bank import Bank, dealt


def filled() -> Bank:
    """Requests to two networks of different length; a site was absent from the second."""
    bank = Bank()
    for number, network, length, personas in (
        (5, "student", 4, 3),
        (6, "anchor", 7, 2),
        (7, "student", 4, 3),
    ):
        bank.add(
            round=number,
            network=network,  # type: ignore[arg-type]
            weights=torch.rand(2, length),
            targets=torch.rand(personas, 2, length),
            variance=torch.rand(2, length),
        )
    return bank


def test_only_the_last_requests_are_recent() -> None:
    assert [entry.round for entry in filled().recent(2)] == [6, 6, 7, 7]
    assert len(filled().recent(9)) == 6


def test_an_entry_holds_its_own_row_of_everything() -> None:
    bank, weights, targets = Bank(), torch.rand(2, 4), torch.rand(3, 2, 4)
    bank.add(round=1, network="anchor", weights=weights, targets=targets, variance=2 * weights)
    second = bank.entries[1]
    assert torch.equal(second.weights, weights[1])
    assert torch.equal(second.targets, targets[:, 1])
    assert torch.equal(second.variance, 2 * weights[1])


def test_a_bank_survives_its_state() -> None:
    bank = filled()
    back = Bank.restored(bank.state())
    for one, other in zip(bank.entries, back.entries, strict=True):
        assert (one.round, one.network) == (other.round, other.network)
        assert torch.equal(one.weights, other.weights)
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.variance, other.variance)
    assert Bank.restored(Bank().state()).entries == []


def test_a_state_with_an_entry_missing_is_refused() -> None:
    state = filled().state()
    del state["targets.3"]
    with pytest.raises(KeyError):
        Bank.restored(state)


def test_values_are_dealt_to_images_in_turn() -> None:
    values = torch.tensor([[1.0], [2.0], [3.0], [4.0], [6.0]])
    assert torch.equal(dealt(values, 8), values), "fewer than images: one target each"
    # 1, 4 to the first of three images; 2, 6 to the second; 3 to the third.
    assert dealt(values, 3).flatten().tolist() == [2.5, 4.0, 3.0]
