import itertools

import pytest
import torch
from torch import nn

from shared.architectures import Residual
from shared.networks import apply_network, initial_weights, parameter_count


def as_modules(network: Residual, weights: torch.Tensor) -> nn.Sequential:
    """The same network from torch's own layers."""
    layers: list[nn.Module] = []
    channels = [1, *[network.width] * (network.depth - 1), 1]
    for number, (inputs, outputs) in enumerate(itertools.pairwise(channels)):
        layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
        if number < network.depth - 1:
            layers.append(nn.ReLU())
    model = nn.Sequential(*layers)
    nn.utils.vector_to_parameters(weights, model.parameters())
    return model


@pytest.mark.parametrize("network", [Residual(), Residual(depth=2, width=5), Residual(depth=6)])
def test_a_flat_vector_is_the_network_of_torchs_own_layers(network: Residual) -> None:
    weights = initial_weights(network, seed=1)
    model = as_modules(network, weights)
    assert parameter_count(network) == sum(p.numel() for p in model.parameters())
    image = torch.rand(2, 1, 20, 20)
    with torch.no_grad():
        torch.testing.assert_close(apply_network(network, weights, image), image + model(image))


def test_the_probe_network_has_the_documented_size() -> None:
    assert parameter_count(Residual(depth=4, width=16)) == 4945


def test_a_pixel_depends_on_its_neighbourhood_alone_and_not_on_its_batch() -> None:
    network = Residual()
    weights = initial_weights(network, seed=0)
    images = torch.rand(4, 1, 24, 24)
    together = apply_network(network, weights, images)
    alone = torch.cat([apply_network(network, weights, image[None]) for image in images])
    torch.testing.assert_close(together, alone)


def test_initial_weights_follow_the_seed() -> None:
    network = Residual()
    assert torch.equal(initial_weights(network, seed=5), initial_weights(network, seed=5))
    assert not torch.equal(initial_weights(network, seed=5), initial_weights(network, seed=6))


def test_a_vector_of_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="10 weights for a network of 4945"):
        apply_network(Residual(), torch.zeros(10), torch.zeros(1, 1, 8, 8))
