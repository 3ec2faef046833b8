import pytest
import torch

from aggregator.distill.anchor import averaged, balanced, descend


def test_the_mean_is_weighted_by_patients() -> None:
    values = [torch.zeros(1, 2), torch.ones(1, 2)]
    torch.testing.assert_close(averaged(values, patients=[10, 5]), torch.full((1, 2), 1 / 3))


def test_a_huge_claim_buys_no_majority() -> None:
    values = [torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1)]
    share = float(averaged(values, patients=[10, 10, 10_000]))
    assert share == pytest.approx(0.5)  # twice the median against the two others


def test_from_five_sites_on_the_extremes_of_each_coordinate_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(2, 7, generator=generator) for _ in range(5)]
    expected = torch.stack(values).sort(dim=0).values[1:4].mean(dim=0)
    torch.testing.assert_close(averaged(values, patients=[10] * 5), expected)


@pytest.mark.parametrize("wild", [1e6, -1e6])
def test_one_wild_site_of_five_moves_nothing_beyond_what_the_others_span(wild: float) -> None:
    honest = [torch.full((1, 3), float(number)) for number in range(4)]
    bad = torch.full((1, 3), wild)
    mean = averaged([*honest, bad], patients=[10, 20, 10, 20, 20])
    assert 0 <= float(mean.min()) <= float(mean.max()) <= 3
    # The control: among four it does, and the mean of all would.
    assert averaged([*honest[:3], bad], patients=[10] * 4).abs().max() > 1e4


def test_a_descent_is_subtracted_up_to_its_bound() -> None:
    weights, descent = torch.tensor([1.0, 0.0]), torch.tensor([0.3, 0.4])
    torch.testing.assert_close(descend(weights, descent, at_most=0.5), torch.tensor([0.7, -0.4]))
    torch.testing.assert_close(descend(weights, descent, at_most=0.05), torch.tensor([0.97, -0.04]))


def test_invented_patients_buy_no_majority() -> None:
    blocks = [torch.full((count, 1, 2), float(count)) for count in (5, 6, 10_000)]
    assert [len(each) for each in balanced(blocks)] == [5, 6, 12]
    assert [len(each) for each in balanced(blocks[:1])] == [5]


def test_nothing_cannot_be_averaged() -> None:
    with pytest.raises(ValueError, match="nothing"):
        averaged([], patients=[])
