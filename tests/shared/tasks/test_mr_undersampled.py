import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.tasks import mr_undersampled
from shared.tasks.kspace import central, indices
from shared.tasks.settings import MrUndersampled


def masks(task: MrUndersampled, *, images: int, size: int, seed: int = 0) -> torch.Tensor:
    hq = torch.zeros(images, 1, size, size)
    return mr_undersampled.lines(task, hq, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=50)
@given(
    size=st.integers(32, 80),
    acceleration=st.floats(1.5, 16),
    share=st.floats(0.05, 1),
    seed=st.integers(0, 100),
)
def test_lines_are_as_many_as_stated_and_hold_the_centre(
    size: int, acceleration: float, share: float, seed: int
) -> None:
    fraction = min(0.5, share / acceleration)
    task = MrUndersampled(acceleration=acceleration, centre_fraction=fraction)
    acquired = masks(task, images=3, size=size, seed=seed)
    assert acquired.shape == (3, 1, size, 1)
    assert set(acquired.unique().tolist()) <= {0.0, 1.0}
    assert acquired.sum(dim=(1, 2, 3)).tolist() == [round(size / acceleration)] * 3
    centre = central(size, min(round(fraction * size), round(size / acceleration)), device=CPU)
    assert bool((acquired[:, 0, :, 0][:, centre] == 1).all())
    assert bool((acquired[:, 0, 0, 0] == 1).all())  # the mean of the image, always


CPU = torch.device("cpu")


def test_every_image_has_lines_of_its_own_that_follow_the_seed() -> None:
    task = MrUndersampled()
    first = masks(task, images=2, size=64, seed=1)
    assert torch.equal(first, masks(task, images=2, size=64, seed=1))
    assert not torch.equal(first, masks(task, images=2, size=64, seed=2))
    assert not torch.equal(first[0], first[1])


def test_lines_are_sparser_away_from_the_centre_and_as_frequent_on_both_sides() -> None:
    often = masks(MrUndersampled(), images=2000, size=128).mean(dim=0)[0, :, 0]
    k = indices(128, device=CPU)
    shares = [float(often[(k.abs() > a) & (k.abs() <= a + 14)].mean()) for a in (5, 19, 33, 47)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.05 < 0.3 < shares[0]
    assert float(often[k > 5].mean()) == pytest.approx(float(often[k < -5].mean()), abs=0.01)


def test_random_lines_have_the_stated_density() -> None:
    # One random line an image: its distribution is the density itself.
    task = MrUndersampled(acceleration=8, centre_fraction=0.1)  # 4 of 32 lines, 3 central
    often = masks(task, images=20_000, size=32).mean(dim=0)[0, :, 0]
    k = indices(32, device=CPU)
    outside = ~central(32, 3, device=CPU)
    density = (1 - k.abs() / 17) ** 3 * outside
    expected = density / density.sum()
    torch.testing.assert_close(often * outside, expected, rtol=0, atol=0.012)


def test_what_varies_along_the_readout_alone_passes_unchanged() -> None:
    hq = torch.rand(2, 1, 1, 48).expand(2, 1, 48, 48)
    lq = mr_undersampled.observe(MrUndersampled(), hq, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(lq, hq)


def test_missing_lines_alias_along_the_rows_axis_alone() -> None:
    hq = torch.zeros(1, 1, 48, 48)
    hq[..., 20:24, 30] = 1
    lq = mr_undersampled.observe(MrUndersampled(), hq, generator=torch.Generator().manual_seed(0))
    assert float(lq[..., :30].abs().max()) == float(lq[..., 31:].abs().max()) == 0
    assert float(lq[0, 0, :10, 30].max()) > 0.01


def test_noise_falls_with_the_acquired_lines() -> None:
    task = MrUndersampled(sigma=0.02)
    lq = mr_undersampled.observe(
        task, torch.full((100, 1, 64, 64), 0.6), generator=torch.Generator().manual_seed(0)
    )
    assert float(lq.std()) == pytest.approx(0.02 * (1 / 4) ** 0.5, rel=0.03)


def test_a_centre_larger_than_all_lines_is_refused() -> None:
    with pytest.raises(ValueError, match="must not exceed 1 / acceleration"):
        MrUndersampled(acceleration=8, centre_fraction=0.2)
