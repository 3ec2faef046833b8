import math

import pytest
import torch

from shared.tasks import mr_denoise
from shared.tasks.settings import MrDenoise


@pytest.mark.parametrize("amplitude", [0.0, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("sigma", [0.02, 0.06])
def test_second_and_fourth_moments_are_rician(amplitude: float, sigma: float) -> None:
    hq = torch.full((100, 1, 64, 64), amplitude)
    lq = mr_denoise.observe(
        MrDenoise(sigma=sigma), hq, generator=torch.Generator().manual_seed(0)
    ).double()
    a, s = amplitude**2, sigma**2
    assert float(lq.square().mean()) == pytest.approx(a + 2 * s, rel=0.01)
    assert float(lq.pow(4).mean()) == pytest.approx(a**2 + 8 * s * a + 8 * s**2, rel=0.02)


def test_air_is_rayleigh() -> None:
    hq = torch.zeros(100, 1, 64, 64)
    lq = mr_denoise.observe(
        MrDenoise(sigma=0.05), hq, generator=torch.Generator().manual_seed(1)
    ).double()
    assert float(lq.mean()) == pytest.approx(0.05 * math.sqrt(math.pi / 2), rel=0.005)
    assert float(lq.var()) == pytest.approx((2 - math.pi / 2) * 0.05**2, rel=0.01)


def test_the_mean_is_that_of_a_rice_distribution() -> None:
    amplitude, sigma = 0.08, 0.06
    hq = torch.full((100, 1, 64, 64), amplitude)
    lq = mr_denoise.observe(
        MrDenoise(sigma=sigma), hq, generator=torch.Generator().manual_seed(2)
    ).double()
    # E[M] = sigma sqrt(pi/2) L_1/2(-A^2 / 2 sigma^2), the Laguerre function by Bessel functions.
    half = torch.tensor(amplitude**2 / (4 * sigma**2), dtype=torch.float64)
    i0, i1 = torch.special.i0e(half), torch.special.i1e(half)
    mean = sigma * math.sqrt(math.pi / 2) * ((1 + 2 * half) * i0 + 2 * half * i1)
    assert float(lq.mean()) == pytest.approx(float(mean), rel=0.005)
