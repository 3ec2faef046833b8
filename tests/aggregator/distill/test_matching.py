import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from aggregator.distill.matching import (
    cosine_and_norm,
    distance_to,
    exact_match,
    filter_count,
    filters,
    filterwise_cosine,
    finite_difference_match,
    relative_squared_distance,
    robust_mean,
    snr_weighted,
    variance_of_mean,
    watched,
)
from shared.architectures import Network, RedCnn, Residual, UNet
from shared.networks import apply_network, initial_weights, parameter_count, restoration_loss

NETWORKS: list[Network] = [Residual(depth=3, width=5), RedCnn(width=4), UNet(levels=1, width=4)]
NET = NETWORKS[0]
NAMES = ("l2", "cosine", "cosine-norm", "snr")


def gradients(network: Network = NET, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, parameter_count(network), generator=generator)
    return first, second


def loss_of(network: Network):  # type: ignore[no-untyped-def]
    def loss(theta: Tensor, lq: Tensor, hq: Tensor) -> Tensor:
        return restoration_loss(apply_network(network, theta, lq), hq)

    return loss


@pytest.mark.parametrize("name", NAMES)
def test_every_distance_is_zero_at_equality_and_positive_elsewhere(name: str) -> None:
    first, second = gradients()
    distance = distance_to(second, name=name, network=NET, variance=first.square())  # type: ignore[arg-type]
    assert float(distance(second)) == pytest.approx(0, abs=1e-6)
    assert float(distance(first)) > 0.1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("factor", [1e-4, 1e3])
def test_no_distance_depends_on_the_gradients_common_unit(name: str, factor: float) -> None:
    first, second = gradients()
    variance = gradients(seed=1)[0].square()

    def distance(scale: float) -> float:
        towards = distance_to(
            scale * second,
            name=name,  # type: ignore[arg-type]
            network=NET,
            variance=scale**2 * variance,
        )
        return float(towards(scale * first))

    assert distance(factor) == pytest.approx(distance(1.0), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_vanishing_target_or_gradient_gives_nothing_infinite(name: str) -> None:
    first, _ = gradients()
    for ours, theirs in (
        (torch.zeros_like(first), first),
        (first, torch.zeros_like(first)),
        (torch.zeros_like(first), torch.zeros_like(first)),
    ):
        leaf = ours.clone().requires_grad_(True)
        towards = distance_to(theirs, name=name, network=NET, variance=torch.zeros_like(first))  # type: ignore[arg-type]
        value = towards(leaf)
        (slope,) = torch.autograd.grad(value, leaf)
        assert not torch.isnan(value)
        if bool(theirs.any()):
            assert bool(torch.isfinite(slope).all())


def test_the_squared_distance_is_one_at_zero_and_four_at_the_opposite() -> None:
    target = torch.tensor([1.0, -2.0, 3.0])
    assert float(relative_squared_distance(-target, target)) == pytest.approx(4.0)
    assert float(relative_squared_distance(torch.zeros(3), target)) == pytest.approx(1.0)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.kind)
def test_filters_are_those_of_the_networks_own_output_channels(network: Network) -> None:
    """A kernel's gradient that reaches one output channel alone is one row."""
    flat = torch.arange(float(parameter_count(network)))
    rows = list(filters(network, flat))
    assert sum(len(layer) for layer in rows) == filter_count(network)
    values = torch.cat([layer.flatten() for layer in rows])
    assert len(values.unique()) == len(values)
    biases = filter_count(network)
    assert len(values) == parameter_count(network) - biases
    # The last layer's only filter, whatever the layout, is all before its bias.
    assert rows[-1].flatten().tolist() == flat[-1 - rows[-1].numel() : -1].tolist()


def test_a_transposed_layers_filter_is_what_makes_one_output_channel() -> None:
    network = RedCnn(width=4)
    flat = torch.zeros(parameter_count(network))
    layer = 6  # transposed, 4 in, 4 out, 5x5
    offset = (4 * 25 + 4) + 5 * (16 * 25 + 4)
    weight = torch.zeros(4, 4, 5, 5)
    weight[:, 1] = 1.0  # torch's layout of transposed kernels: (in, out, k, k)
    flat[offset : offset + weight.numel()] = weight.flatten()
    assert list(filters(network, flat))[layer].sum(dim=1).tolist() == [0.0, 100.0, 0.0, 0.0]


def test_filterwise_cosine_is_that_of_dataset_condensation() -> None:
    """Layer by layer with torch's own cosine, on weights of torch's own shape."""
    first, second = gradients()
    shapes = [(5, 1), (5, 5), (1, 5)]
    expected, offset = 0.0, 0
    for outputs, inputs in shapes:
        size = outputs * inputs * 9
        ours = first[offset : offset + size].view(outputs, -1)
        theirs = second[offset : offset + size].view(outputs, -1)
        expected += float((1 - functional.cosine_similarity(ours, theirs, dim=1)).sum())
        offset += size + outputs
    assert offset == len(first)
    assert float(filterwise_cosine(NET, first, second)) == pytest.approx(expected, rel=1e-5)
    assert float(filterwise_cosine(NET, 7 * first, second)) == pytest.approx(expected, rel=1e-5)
    assert float(filterwise_cosine(NET, -second, second)) == pytest.approx(2 * 11, rel=1e-5)
    ours = distance_to(second, name="cosine", network=NET, variance=second)
    assert float(ours(first)) == pytest.approx(expected / 11, rel=1e-5)


def test_a_dead_filter_of_the_target_counts_nothing() -> None:
    first, second = gradients()
    second[:9] = 0  # the first filter
    expected = float(filterwise_cosine(NET, first, second))
    first[:9] *= -3
    assert float(filterwise_cosine(NET, first, second)) == pytest.approx(expected)
    assert float(filterwise_cosine(NET, second, second)) == pytest.approx(0, abs=1e-5)


def test_the_norm_is_what_the_cosine_forgets() -> None:
    _, second = gradients()
    assert float(filterwise_cosine(NET, 3 * second, second)) == pytest.approx(0, abs=1e-5)
    expected = math.log(3) ** 2
    assert float(cosine_and_norm(NET, 3 * second, second)) == pytest.approx(expected, rel=1e-4)
    assert float(cosine_and_norm(NET, second / 3, second)) == pytest.approx(expected, rel=1e-4)


def test_coordinates_that_hospitals_disagree_on_count_less() -> None:
    target, variance = torch.tensor([2.0, 2.0]), torch.tensor([0.0, 12.0])
    ours = torch.tensor([3.0, 4.0])
    # weights 1 and 4 / 16: (1 * 1 + 0.25 * 4) / (1 * 4 + 0.25 * 4)
    assert float(snr_weighted(ours, target, variance)) == pytest.approx(2 / 5)
    even = float(snr_weighted(ours, target, torch.zeros(2)))
    assert even == pytest.approx(float(relative_squared_distance(ours, target)))


def test_the_variance_of_the_mean_shrinks_with_hospitals() -> None:
    values = torch.tensor([[1.0, 5.0], [3.0, 5.0], [5.0, 5.0]])
    assert variance_of_mean(values).tolist() == pytest.approx([4 / 3, 0.0])
    assert variance_of_mean(values[:1]).tolist() == [0.0, 0.0]


def test_finite_differences_are_exact_where_the_loss_is_smooth() -> None:
    """Doubles, a network without kinks, against double backward."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(18, generator=generator, dtype=torch.float64)
    target = torch.randn(18, generator=generator, dtype=torch.float64)

    def loss(theta: Tensor, lq: Tensor, hq: Tensor) -> Tensor:
        hidden = torch.tanh(functional.conv2d(lq, theta[:9].view(1, 1, 3, 3), padding=1))
        out = lq + functional.conv2d(hidden, theta[9:].view(1, 1, 3, 3), padding=1)
        return restoration_loss(out, hq)

    values, slopes = [], []
    for match in (exact_match, finite_difference_match):
        image = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
        image.requires_grad_(True)
        value = match(
            loss,
            weights=weights,
            lq=image + 0.1,
            hq=image.square(),
            distance=lambda ours: relative_squared_distance(ours, target),
        )
        values.append(float(value.detach()))
        slopes.append(torch.autograd.grad(value, image)[0])
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_finite_differences_point_the_same_way_on_a_rectified_network(name: str) -> None:
    network = Residual(depth=4, width=8)
    weights = initial_weights(network, seed=0)
    axis = torch.linspace(0, 6, 24)
    other = (0.5 + 0.5 * torch.sin(axis[:, None]) * torch.cos(2 * axis)).expand(2, 1, 24, 24)
    leaf = weights.clone().requires_grad_(True)
    noisy = other + 0.1 * torch.randn(other.shape, generator=torch.Generator().manual_seed(2))
    (target,) = torch.autograd.grad(loss_of(network)(leaf, noisy, other), leaf)
    slopes = []
    for match in (exact_match, finite_difference_match):
        generator = torch.Generator().manual_seed(1)
        image = torch.rand(2, 1, 24, 24, generator=generator).requires_grad_(True)
        noise = 0.1 * torch.randn(image.shape, generator=generator)
        distance = distance_to(
            target,
            name=name,  # type: ignore[arg-type]
            network=network,
            variance=target.square(),
        )
        value = match(
            loss_of(network), weights=weights, lq=image + noise, hq=image, distance=distance
        )
        slopes.append(torch.autograd.grad(value, image)[0].flatten())
    assert float(functional.cosine_similarity(*slopes, dim=0)) > 0.5
    assert 0.5 < float(slopes[1].norm() / slopes[0].norm()) < 2


def test_a_persona_that_stands_out_pulls_no_harder_the_farther_it_is() -> None:
    distances = torch.tensor([1.0, 1.21, 0.81, 400.0], requires_grad=True)
    # The median's root is 1 (the lower of two): bent at 2, where 20 counts 2 (2 * 20 - 2).
    total = robust_mean(distances)
    assert float(total.detach()) == pytest.approx((1.0 + 1.21 + 0.81 + 76.0) / 4)
    (slope,) = torch.autograd.grad(total, distances)
    torch.testing.assert_close(slope, torch.tensor([0.25, 0.25, 0.25, 0.25 * 2 / 20]))


@pytest.mark.parametrize("distances", [[0.7], [0.2, 0.3], [1.0, 1.1, 1.2], [0.0, 0.0, 0.0]])
def test_personas_that_are_alike_have_their_plain_mean(distances: list[float]) -> None:
    tensor = torch.tensor(distances)
    torch.testing.assert_close(robust_mean(tensor), tensor.mean())


def test_a_watched_distance_is_the_same_and_notes_the_cosine() -> None:
    target = torch.tensor([3.0, 4.0])
    cosines: list[torch.Tensor] = []
    plain = distance_to(target, name="l2", network=NET, variance=torch.zeros(2))
    gradient = torch.tensor([3.0, 0.0], requires_grad=True)
    distance = watched(plain, target=target, cosines=cosines)(gradient)
    assert float(distance.detach()) == float(plain(gradient).detach())
    assert [round(float(cosine), 6) for cosine in cosines] == [0.6]
    assert not cosines[0].requires_grad
