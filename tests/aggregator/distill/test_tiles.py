import pytest
import torch

from aggregator.distill.tiles import tiling
from shared.architectures import Network, Residual
from shared.networks import apply_network, initial_weights


@pytest.mark.parametrize("size", [32, 96, 100, 128, 129, 200, 256])
def test_a_sweep_shows_every_pixel_of_every_image_once(size: int) -> None:
    division = tiling(size)
    places = torch.arange(size * size).view(1, 1, size, size).repeat(3, 1, 1, 1)
    shown: list[list[int]] = [[], [], []]
    for tiles in division.sweep(3, generator=torch.Generator().manual_seed(0)):
        windows = division.cut(places, tiles)
        inside = division.inside(tiles, device=windows.device).bool()
        assert windows.shape == inside.shape
        for number in range(3):
            shown[number] += windows[number][inside[number]].tolist()
    for pixels in shown:
        assert sorted(pixels) == list(range(size * size))


@pytest.mark.parametrize("network", [Residual(depth=4, width=4), Residual(depth=8, width=4)])
@pytest.mark.parametrize("size", [128, 192])
def test_the_mean_over_a_sweep_is_the_loss_of_whole_images(network: Network, size: int) -> None:
    """Equal to the last digits: a margin of eight holds what eight layers see."""
    generator = torch.Generator().manual_seed(1)
    lq, hq = torch.rand(2, 2, 1, size, size, generator=generator, dtype=torch.float64)
    weights = initial_weights(network, seed=0).double()
    whole = (apply_network(network, weights, lq) - hq).square().mean()
    division = tiling(size)
    losses = []
    for tiles in division.sweep(2, generator=generator):
        window, target = (division.cut(images, tiles) for images in (lq, hq))
        error = (apply_network(network, weights, window) - target).square()
        inside = division.inside(tiles, device=error.device)
        losses.append((error * inside).sum() * division.weight / 2)
    assert float(sum(losses)) / len(losses) == pytest.approx(float(whole), rel=1e-9)
    assert float(losses[0]) != pytest.approx(float(whole), rel=1e-4)


def test_windows_are_a_part_of_the_image_and_small_images_stay_whole() -> None:
    assert tiling(128).window_px == 72
    assert tiling(256).window_px == 80
    assert (tiling(96).count, tiling(96).window_px) == (1, 96)
