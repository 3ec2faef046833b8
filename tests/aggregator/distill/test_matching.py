import pytest
import torch

from aggregator.distill.matching import relative_squared_distance


def test_equal_gradients_are_at_distance_zero_and_opposite_ones_at_four() -> None:
    target = torch.tensor([1.0, -2.0, 3.0])
    assert float(relative_squared_distance(target, target)) == 0
    assert float(relative_squared_distance(-target, target)) == pytest.approx(4.0)
    assert float(relative_squared_distance(torch.zeros(3), target)) == pytest.approx(1.0)


def test_the_distance_does_not_depend_on_the_unit() -> None:
    first, second = torch.randn(2, 50)
    torch.testing.assert_close(
        relative_squared_distance(1e-3 * first, 1e-3 * second),
        relative_squared_distance(first, second),
    )


def test_a_vanishing_target_gives_no_division_by_zero() -> None:
    assert torch.isfinite(relative_squared_distance(torch.zeros(3), torch.zeros(3)))
