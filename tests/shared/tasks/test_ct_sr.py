import math

import pytest
import torch

from shared.tasks import ct_sr
from shared.tasks.settings import CtSr


def grid(size: int, count: int = 1) -> torch.Tensor:
    return torch.zeros(count, 1, size, size, dtype=torch.float64)


@pytest.mark.parametrize("direction", ["in-plane", "slice"])
@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("size", [32, 33, 34, 35])
def test_the_adjoint_is_exact(direction: str, factor: int, size: int) -> None:
    task = CtSr.model_validate({"factor": factor, "direction": direction})
    level = ct_sr.sampling(task, grid(size))
    random = torch.Generator().manual_seed(size)
    image = torch.randn(2, 1, size, size, generator=random).double().requires_grad_(True)
    forward = level.interpolate(level.sample(image))
    other = torch.randn(forward.shape, generator=random).double()
    down, up = level.aperture, level.interpolation
    adjoint = down.T @ up.T @ other
    if direction == "in-plane":
        adjoint = adjoint @ up @ down
    left, right = (forward * other).sum(), (image * adjoint).sum()
    torch.testing.assert_close(left, right)
    (derived,) = torch.autograd.grad(left, image)
    torch.testing.assert_close(derived, adjoint)


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("fwhm", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("frequency", [0.01, 0.05, 0.1, 0.2])
def test_the_modulation_is_that_of_a_gaussian_aperture(
    factor: int, fwhm: float, frequency: float
) -> None:
    task = CtSr.model_validate({"factor": factor, "blur_fwhm": fwhm, "direction": "slice"})
    size = 160
    pixels = torch.arange(size, dtype=torch.float64)
    wave = torch.cos(2 * math.pi * frequency * pixels + 0.3)
    samples = ct_sr.sampling(task, grid(size)).sample(wave[:, None].expand(1, 1, size, size))
    centres = torch.arange(size // factor, dtype=torch.float64) * factor + (factor - 1) / 2
    sigma = fwhm * factor / 2.3548200450309493
    modulation = math.exp(-2 * (math.pi * sigma * frequency) ** 2)
    expected = modulation * torch.cos(2 * math.pi * frequency * centres + 0.3)
    inner = slice(40 // factor, -40 // factor)
    torch.testing.assert_close(samples[0, 0, inner, 7], expected[inner], rtol=0, atol=1e-3)


def test_a_narrow_aperture_is_the_mean_of_the_two_nearest_pixels() -> None:
    task = CtSr(factor=4, blur_fwhm=0.1, direction="slice", noise_hu=0)
    image = torch.arange(32.0).square()[:, None].expand(1, 1, 32, 32)
    samples = ct_sr.sampling(task, image).sample(image)[0, 0, :, 0]
    torch.testing.assert_close(samples, (image[0, 0, 1::4, 0] + image[0, 0, 2::4, 0]) / 2)


@pytest.mark.parametrize("size", [32, 33, 35])
@pytest.mark.parametrize("factor", [2, 4])
def test_a_constant_passes_unchanged_up_to_the_edges(factor: int, size: int) -> None:
    task = CtSr.model_validate({"factor": factor, "noise_hu": 0})
    image = torch.full((1, 1, size, size), 0.7)
    lq = ct_sr.observe(
        task, image, ct_sr.sampling(task, image), generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(lq, image)


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("factor", [2, 4])
def test_interpolation_is_exact_for_a_parabola_away_from_the_edges(factor: int, size: int) -> None:
    task = CtSr.model_validate({"factor": factor})
    level = ct_sr.sampling(task, grid(size))
    count = math.ceil(size / factor)
    centres = torch.arange(count, dtype=torch.float64) * factor + (factor - 1) / 2
    pixels = torch.arange(size, dtype=torch.float64)
    samples = (centres[:, None] - 9) ** 2 + 3 * centres + 0 * centres[:, None]
    expected = (pixels[:, None] - 9) ** 2 + 3 * pixels
    back = level.interpolate(samples[None, None])[0, 0]
    inner = slice(2 * factor, -3 * factor)
    torch.testing.assert_close(back[inner, inner], expected[inner, inner])


def test_slices_blur_along_the_rows_axis_alone() -> None:
    task = CtSr(direction="slice", noise_hu=0)
    image = torch.zeros(1, 1, 32, 32)
    image[..., 16] = 1  # the same in every row
    level = ct_sr.sampling(task, image)
    assert level.sample(image).shape == (1, 1, 16, 32)
    lq = ct_sr.observe(task, image, level, generator=torch.Generator())
    torch.testing.assert_close(lq, image)


@pytest.mark.parametrize(("direction", "power"), [("in-plane", 2), ("slice", 1)])
def test_noise_has_the_stated_deviation_on_the_samples(direction: str, power: int) -> None:
    task = CtSr.model_validate({"direction": direction, "noise_hu": 50})
    image = torch.zeros(40, 1, 64, 64)
    lq = ct_sr.observe(
        task, image, ct_sr.sampling(task, image), generator=torch.Generator().manual_seed(0)
    )
    # HQ pixels lie a quarter of a step from LQ samples: Keys' weights there, squared and summed.
    weights = (0.8671875, 0.2265625, -0.0703125, -0.0234375)
    kept = sum(weight**2 for weight in weights) ** (power / 2)
    inner = lq[..., 8:-8, 8:-8]
    assert float(inner.std()) * 2000 == pytest.approx(50 * kept, rel=0.02)
    assert float(inner.mean()) * 2000 == pytest.approx(0, abs=0.6)
