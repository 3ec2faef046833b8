import pytest
import torch

from aggregator.distill.shrinkage import noise_deviation, shrunk
from shared.contract import Anchor, Privacy, RunContract

CONTRACT = RunContract(
    name="ct",
    anchor=Anchor(descent="patient", clip_norm=0.5),
    privacy=Privacy(epsilon=3.0, patients=8, sampling=0.5),
)


@pytest.mark.parametrize("length", [0.0, 2.0, 10.0])
def test_a_shrunk_vector_is_nearer_to_the_truth_on_average(length: float) -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(1, 24)
    truth[0, 0] = length
    before, after = 0.0, 0.0
    for _ in range(300):
        seen = truth + torch.randn(1, 24, generator=generator)
        before += float((seen - truth).square().sum())
        after += float((shrunk(seen, deviation=1.0) - truth).square().sum())
    assert after < before


def test_it_is_the_formula_and_never_turns_round() -> None:
    values = torch.full((1, 12), 2.0)
    # 1 - (12 - 2) 0.25 / 48
    torch.testing.assert_close(shrunk(values, deviation=0.5), values * (1 - 2.5 / 48))
    assert torch.equal(shrunk(values, deviation=100.0), torch.zeros(1, 12))
    assert torch.equal(shrunk(values, deviation=0.0), values)
    assert torch.equal(shrunk(values[:, :2], deviation=100.0), values[:, :2]), "from three on"


def test_a_spread_says_where_the_truth_is_long() -> None:
    generator = torch.Generator().manual_seed(1)
    spread = torch.tensor([25.0, 9.0, 4.0] + [0.01] * 29)
    alike, told = 0.0, 0.0
    for _ in range(300):
        truth = spread.sqrt() * torch.randn(1, 32, generator=generator)
        seen = truth + torch.randn(1, 32, generator=generator)
        alike += float((shrunk(seen, deviation=1.0) - truth).square().sum())
        told += float((shrunk(seen, deviation=1.0, spread=7 * spread) - truth).square().sum())
    assert told < 0.6 * alike
    seen = torch.full((1, 12), 2.0)
    flat = shrunk(seen, deviation=0.5, spread=torch.full((12,), 3.0))
    torch.testing.assert_close(flat, shrunk(seen, deviation=0.5))
    # t = (48 - 12 * 0.25 * 10 / 12) / 13 of a spread of one 2 and eleven ones.
    lopsided = shrunk(seen, deviation=0.5, spread=torch.tensor([2.0] + [1.0] * 11))
    expected = 45.5 / 13 * 2
    assert float(lopsided[0, 0]) == pytest.approx(2 * expected / (expected + 2.5 / 12))


def test_the_deviation_is_that_of_the_mean_of_sums() -> None:
    z = CONTRACT.noise_multiplier
    assert z is not None
    local = noise_deviation(CONTRACT, "local-steps", rows=1, sites=4)
    assert local == pytest.approx(z * 0.5 / (8 * 0.5) / 2)
    shared = CONTRACT.privacy.model_copy(update={"noise": "distributed", "honest": 0.5})
    distributed = CONTRACT.model_copy(update={"privacy": shared, "granularity": "federation"})
    # Two of four carry it: each site's variance is half a local one's.
    assert noise_deviation(distributed, "local-steps", rows=1, sites=4) == pytest.approx(
        local / 2**0.5
    )
    clear = CONTRACT.model_copy(update={"privacy": Privacy()})
    assert noise_deviation(clear, "local-steps", rows=1, sites=4) == 0
