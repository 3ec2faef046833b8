import pytest
import torch

from aggregator.distill.variants import VARIANTS, noisy, sharpened, smoothed, varied, zoomed


def images(count: int = 7, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 1, 8, 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


def test_every_sixth_image_is_shown_each_way() -> None:
    shown = varied(images(7), seed=1)
    assert shown.shape == (2 * len(VARIANTS), 1, 32, 32)
    assert torch.equal(shown[:2], images(7)[[0, 6]])
    assert bool(torch.isfinite(shown).all())
    assert len({one.numpy().tobytes() for one in shown}) == len(shown)
    assert torch.equal(shown, varied(images(7), seed=1))
    assert not torch.equal(shown, varied(images(7), seed=2))


def test_sharpening_undoes_what_smoothing_takes_and_keeps_the_flat() -> None:
    flat = torch.full((1, 1, 16, 16), 0.4)
    torch.testing.assert_close(smoothed(flat), flat)
    torch.testing.assert_close(sharpened(flat, 2.0), flat)
    edges = images(1)
    assert smoothed(edges).std() < edges.std() < sharpened(edges, 1.0).std()


@pytest.mark.parametrize("blurs", [0, 3])
def test_noise_has_its_deviation_and_stays_out_of_air(blurs: int) -> None:
    picture = torch.full((4, 1, 64, 64), 0.5)
    picture[..., :32] = 0.0
    generator = torch.Generator().manual_seed(0)
    added = noisy(picture, generator, deviation=0.02, blurs=blurs) - picture
    assert bool((added[..., :32] == 0).all())
    assert float(added[..., 32:].std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("factor", [1.3, 0.8, 1.0])
def test_zooming_keeps_size_and_centre(factor: float) -> None:
    picture = torch.zeros(1, 1, 32, 32)
    picture[..., 12:20, 12:20] = 1.0
    seen = zoomed(picture, factor)
    assert seen.shape == picture.shape
    rows = torch.arange(32.0)
    mass = seen[0, 0].sum()
    assert float((seen[0, 0].sum(1) * rows).sum() / mass) == pytest.approx(15.5, abs=0.6)
    assert float(mass / picture.sum()) == pytest.approx(factor**2, rel=0.1)
