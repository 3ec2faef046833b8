import pytest
import torch
from torch import Tensor

from aggregator.distill.matching import relative_squared_distance
from aggregator.distill.personas import batched_gradients, persona_distances
from shared.architectures import Edsr, Network, RedCnn, Residual, UNet
from shared.networks import apply_network, initial_weights, parameter_count

NETWORKS: list[Network] = [
    Residual(depth=3, width=5),
    RedCnn(width=4),
    Edsr(blocks=1, width=4),
    UNet(levels=1, width=4),
]
IMAGES, GROUPS = 8, 3


def situation(network: Network) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """A probe's weights, eight images, how much their pixels count, and three targets."""
    generator = torch.Generator().manual_seed(0)
    weights = initial_weights(network, seed=1)
    windows = torch.rand(IMAGES, 2, 16, 16, generator=generator)
    counted = (torch.rand(IMAGES, 1, 16, 16, generator=generator) > 0.3).float() / 256
    targets = list(torch.randn(GROUPS, parameter_count(network), generator=generator))
    return weights, windows, counted, targets


def distances(network: Network, *, together: bool, form: str = "exact") -> tuple[Tensor, Tensor]:
    """The personas' distances, and the derivative of their weighted sum in the images."""
    weights, windows, counted, targets = situation(network)
    windows.requires_grad_(True)
    found = persona_distances(
        network,
        weights=weights,
        windows=windows,
        counted=counted,
        distances=[lambda mine, its=its: relative_squared_distance(mine, its) for its in targets],
        form=form,  # type: ignore[arg-type]
        together=together,
    )
    (found * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert windows.grad is not None
    return found.detach(), windows.grad


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.kind)
def test_a_batch_of_personas_is_one_after_the_other(network: Network) -> None:
    values, moved = distances(network, together=False)
    batched, batched_moved = distances(network, together=True)
    torch.testing.assert_close(batched, values, rtol=1e-5, atol=1e-7)
    scale = float(moved.abs().max())
    torch.testing.assert_close(batched_moved, moved, rtol=1e-4, atol=1e-5 * scale)


def test_each_personas_gradient_is_that_of_its_own_images_mean() -> None:
    network = NETWORKS[0]
    weights, windows, counted, _ = situation(network)
    found = batched_gradients(
        network, weights=weights, windows=windows, counted=counted, groups=GROUPS
    )
    for group, images in enumerate([(0, 3, 6), (1, 4, 7), (2, 5)]):
        theta = weights.clone().requires_grad_(True)
        error = apply_network(network, theta, windows[list(images), :1]) - windows[list(images), 1:]
        each = (counted[list(images)] * error.square()).sum(dim=(1, 2, 3))
        (expected,) = torch.autograd.grad(each.mean(), theta)
        torch.testing.assert_close(found[group], expected, rtol=1e-4, atol=1e-6)


def test_one_personas_images_do_not_move_for_another() -> None:
    network = NETWORKS[0]
    weights, windows, counted, targets = situation(network)
    for together in (False, True):
        images = windows.clone().requires_grad_(True)
        found = persona_distances(
            network,
            weights=weights,
            windows=images,
            counted=counted,
            distances=[lambda mine: relative_squared_distance(mine, targets[0])] * GROUPS,
            form="exact",
            together=together,
        )
        found[1].backward()
        assert images.grad is not None
        moved = images.grad.abs().amax(dim=(1, 2, 3)) > 0
        assert moved.tolist() == [place % GROUPS == 1 for place in range(IMAGES)]


def test_finite_differences_are_taken_one_persona_after_the_other() -> None:
    for one, other in zip(
        distances(NETWORKS[0], together=True, form="finite-difference"),
        distances(NETWORKS[0], together=False, form="finite-difference"),
        strict=True,
    ):
        assert torch.equal(one, other)
