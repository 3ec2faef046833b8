import numpy as np
import pytest
import torch
from pydantic import ValidationError

from shared.tasks import ct_denoise
from shared.tasks.settings import CtDenoise

TASK = CtDenoise(size_px=32, angles=60, bins=48, pixel_mm=9.0)


def body(count: int = 1) -> torch.Tensor:
    axis = torch.linspace(-1, 1, TASK.size_px)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    inside = (x**2 / 0.7 + y**2 / 0.4 < 1).float()
    return (inside * 0.5)[None, None].repeat(count, 1, 1, 1)


def test_the_same_seed_gives_the_same_noise_and_another_does_not() -> None:
    hq = body()
    first = ct_denoise.degrade(TASK, hq, seed=4)
    assert torch.equal(first, ct_denoise.degrade(TASK, hq, seed=4))
    assert not torch.equal(first, ct_denoise.degrade(TASK, hq, seed=5))


def test_noise_has_no_bias() -> None:
    hq = body(200)
    noise = ct_denoise.degrade(TASK, hq, seed=0) - hq
    assert abs(float(noise.mean())) < 4 * float(noise.std()) / (200 * 32) ** 0.5 + 1e-4


def test_every_view_lets_the_stated_photons_through_behind_its_thickest_ray() -> None:
    sigma = ct_denoise.dose(TASK, body()).sigma
    counts = TASK.photons
    worst = ((1 + TASK.electronic_sigma**2 / counts) / counts) ** 0.5
    torch.testing.assert_close(sigma.amax(dim=2), torch.full((1, TASK.angles), worst))


def test_a_quarter_of_the_photons_doubles_the_noise_without_electronics() -> None:
    rich = TASK.model_copy(update={"photons": 400.0, "electronic_sigma": 0.0})
    poor = rich.model_copy(update={"photons": 100.0})
    noises = [ct_denoise.degrade(task, body(), seed=1) - body() for task in (rich, poor)]
    torch.testing.assert_close(noises[1], 2 * noises[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("photons", "within"), [(20, 0.09), (100, 0.02), (1000, 0.02)])
def test_the_variance_is_that_of_the_logarithm_of_poisson_counts(
    photons: int, within: float
) -> None:
    random = np.random.default_rng(0)
    counts = random.poisson(photons, 400_000)
    sampled = np.log(counts[counts > 0]).var()
    task = TASK.model_copy(update={"photons": float(photons), "electronic_sigma": 0.0})
    ours = float(ct_denoise.dose(task, body()).sigma.amax()) ** 2
    assert ours == pytest.approx(sampled, rel=within)


def test_electronic_noise_adds_as_stated() -> None:
    random = np.random.default_rng(0)
    counts = random.poisson(400, 400_000) + random.normal(0, 15, 400_000)
    task = TASK.model_copy(update={"photons": 400.0, "electronic_sigma": 15.0})
    ours = float(ct_denoise.dose(task, body()).sigma.amax()) ** 2
    assert ours == pytest.approx(np.log(counts).var(), rel=0.02)


def test_degradation_is_differentiable_through_the_noise_level() -> None:
    hq = (body() + 0.02).requires_grad_(True)

    def total(image: torch.Tensor) -> torch.Tensor:
        return ct_denoise.degrade(TASK, image, seed=2).square().sum()

    (gradient,) = torch.autograd.grad(total(hq), hq)
    direction = 0.05 * gradient / gradient.norm()
    with torch.no_grad():
        change = (total(hq + direction) - total(hq - direction)) / 2
    assert float((gradient * direction).sum()) == pytest.approx(float(change), rel=0.02)


def test_a_detector_that_misses_the_images_sides_is_refused() -> None:
    with pytest.raises(ValidationError, match="bins must be at least size_px"):
        CtDenoise(size_px=256)
    assert CtDenoise(size_px=256, bins=384, pixel_mm=1.4).size_px == 256
