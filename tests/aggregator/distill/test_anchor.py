import pytest
import torch

from aggregator.distill.anchor import averaged, balanced, descend


def test_the_mean_is_weighted_by_patients() -> None:
    values = [torch.zeros(1, 2), torch.ones(1, 2)]
    torch.testing.assert_close(averaged(values, patients=[10, 5]), torch.full((1, 2), 1 / 3))


def test_a_huge_claim_buys_no_majority() -> None:
    values = [torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    mean = averaged(values, patients=[10, 10, 10_000])
    assert mean[0].tolist() == pytest.approx([0.5, 0.5])  # twice the median against the two others


def test_from_three_sites_on_no_answer_is_longer_than_the_median_one() -> None:
    along = torch.eye(3)[:, None]
    values = [along[0], 2 * along[1], -1e3 * along[2]]
    assert averaged(values, patients=[5] * 3)[0].tolist() == pytest.approx([1 / 3, 2 / 3, -2 / 3])
    assert averaged(values[1:], patients=[5] * 2)[0].tolist() == pytest.approx([0, 1, -500])
    # Rows count together: a request's answer is one.
    rows = [torch.cat([2 * along[0], torch.zeros(1, 3)]), *(torch.ones(2, 3) for _ in range(2))]
    torch.testing.assert_close(averaged(rows, patients=[5] * 3), torch.stack(rows).mean(0))
    none = averaged([torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2)], patients=[5] * 3)
    assert none.tolist() == [[0.0, 0.0]]


def test_from_five_sites_on_the_extremes_of_each_coordinate_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(2, 7, generator=generator) for _ in range(5)]
    values = [value / value.norm() for value in values]
    expected = torch.stack(values).sort(dim=0).values[1:4].mean(dim=0)
    torch.testing.assert_close(averaged(values, patients=[10] * 5), expected)


@pytest.mark.parametrize("wild", [1e6, -1e6])
def test_one_wild_site_of_five_moves_nothing_beyond_what_the_others_span(wild: float) -> None:
    honest = [torch.full((1, 3), float(number)) for number in range(4)]
    bad = torch.full((1, 3), wild)
    mean = averaged([*honest, bad], patients=[10, 20, 10, 20, 20])
    assert 0 <= float(mean.min()) <= float(mean.max()) <= 3
    # The control: of two, nobody knows which.
    assert averaged([honest[1], bad], patients=[10] * 2).abs().max() > 1e4


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
