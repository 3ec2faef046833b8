import pytest
import torch

from aggregator.distill.anchor import averaged, descend


def test_the_mean_is_weighted_by_patients() -> None:
    values = [torch.zeros(1, 2), torch.ones(1, 2)]
    torch.testing.assert_close(averaged(values, patients=[10, 5]), torch.full((1, 2), 1 / 3))


def test_a_huge_claim_buys_no_majority() -> None:
    values = [torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1)]
    share = float(averaged(values, patients=[10, 10, 10_000]))
    assert share == pytest.approx(0.5)  # twice the median against the two others


def test_a_descent_is_subtracted() -> None:
    assert descend(torch.tensor([1.0]), torch.tensor([0.25])).tolist() == [0.75]


def test_nothing_cannot_be_averaged() -> None:
    with pytest.raises(ValueError, match="nothing"):
        averaged([], patients=[])
