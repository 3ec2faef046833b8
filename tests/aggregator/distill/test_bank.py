import pytest
import torch

from aggregator.distill.bank import Bank, dealt
from shared.architectures import Residual
from shared.networks import parameter_count
from shared.sketch import Sketch


def filled() -> Bank:
    """Requests to two networks of different length, a site absent from the second; one sketched."""
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
    network = Residual(depth=2, width=4)
    sketches = [
        Sketch(network, size=3, seed=seed, scales=torch.tensor([1.0, float(seed)]))
        for seed in (2**62, 5)
    ]
    bank.add(
        round=8,
        network="student",
        weights=torch.rand(2, parameter_count(network)),
        targets=torch.rand(3, 2, 3),
        variance=torch.rand(2, 3),
        sketches=sketches,
    )
    return bank


def test_only_the_last_requests_are_recent() -> None:
    assert [entry.round for entry in filled().recent(2)] == [7, 7, 8, 8]
    assert len(filled().recent(9)) == 8


def test_an_entry_holds_its_own_row_of_everything() -> None:
    bank, weights, targets = Bank(), torch.rand(2, 4), torch.rand(3, 2, 4)
    bank.add(round=1, network="anchor", weights=weights, targets=targets, variance=2 * weights)
    second = bank.entries[1]
    assert torch.equal(second.weights, weights[1])
    assert torch.equal(second.targets, targets[:, 1])
    assert torch.equal(second.variance, 2 * weights[1])


def test_an_entry_of_a_sketched_answer_says_which_sketch() -> None:
    *whole, first, second = filled().entries
    assert all(len(entry.scales) == entry.seed == 0 for entry in whole)
    assert (first.seed, second.seed) == (2**62, 5)
    assert second.scales.tolist() == [1.0, 5.0]
    assert second.targets.shape == (3, 3)


def test_a_bank_survives_its_state() -> None:
    bank = filled()
    back = Bank.restored(bank.state())
    for one, other in zip(bank.entries, back.entries, strict=True):
        assert (one.round, one.network) == (other.round, other.network)
        assert torch.equal(one.weights, other.weights)
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.variance, other.variance)
        assert torch.equal(one.scales, other.scales)
        assert one.seed == other.seed
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
