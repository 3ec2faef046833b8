import hashlib
import struct

import numpy as np
import pytest
import torch

from shared.architectures import Network, Residual, UNet
from shared.families import layers
from shared.networks import initial_weights, parameter_count
from shared.sketch import (
    LARGEST_SCALE,
    LEAST_SCALE,
    Sketch,
    are_scales,
    layer_scales,
    sketch_seed,
)

NETWORK = Residual(depth=3, width=4)
LENGTH = parameter_count(NETWORK)


def ones(network: Network = NETWORK) -> torch.Tensor:
    return torch.ones(len(layers(network)))


def sketch(size: int = 32, seed: int = 7, scales: torch.Tensor | None = None) -> Sketch:
    return Sketch(NETWORK, size=size, seed=seed, scales=ones() if scales is None else scales)


def matrix(size: int, seed: int, length: int = LENGTH) -> np.ndarray:
    """S by the words of its specification, entry by entry."""
    blocks = min(4, size)
    stream = hashlib.shake_256(f"fedstill sketch {seed}".encode()).digest(8 * blocks * length)
    words = struct.unpack(f"<{blocks * length}Q", stream)
    sizes = [size // blocks + (block < size % blocks) for block in range(blocks)]
    dense, top = np.zeros((size, length)), 0
    for block, rows in enumerate(sizes):
        own = words[block * length : (block + 1) * length]
        shuffled = sorted(range(length), key=lambda j: (own[j] >> 1, j))
        for place, j in enumerate(shuffled):
            sign = -1 if own[j] & 1 else 1
            dense[top + place % rows, j] = sign / np.sqrt(blocks)
        top += rows
    return dense


@pytest.mark.parametrize("size", [1, 3, 4, 5, 32, 301, 2 * LENGTH])
def test_a_sketch_is_its_explicit_matrix(size: int) -> None:
    x = torch.randn(LENGTH)
    expected = matrix(size, 7) @ x.double().numpy()
    np.testing.assert_allclose(sketch(size)(x).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_matrix_is_the_same_on_every_platform() -> None:
    image = np.stack([sketch(8)(one).numpy() for one in torch.eye(LENGTH)])
    signs = np.sign(image).astype(np.int8).tobytes()
    assert hashlib.sha256(signs).hexdigest() == PINNED


PINNED = "532737b8f9d6a7787a320aaef33563aed5d80e8d6d09d90acd5b3e95dc902527"


def test_every_column_has_length_one_and_every_row_as_many_entries() -> None:
    dense = matrix(32, 1)
    np.testing.assert_allclose(np.linalg.norm(dense, axis=0), 1)
    entries = (dense != 0).sum(axis=1)
    assert entries.max() - entries.min() <= 1


def test_a_sketch_is_linear() -> None:
    x, y, one = torch.randn(LENGTH), torch.randn(LENGTH), sketch()
    torch.testing.assert_close(one(2 * x - 3 * y), 2 * one(x) - 3 * one(y), rtol=1e-4, atol=1e-5)


def test_its_derivative_is_its_adjoint() -> None:
    one, y = sketch(), torch.randn(32)
    x = torch.randn(LENGTH, requires_grad=True)
    value = one(x) @ y
    (adjoint,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(value.detach(), x.detach() @ adjoint, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(adjoint.numpy(), matrix(32, 7).T @ y.numpy(), rtol=1e-4, atol=1e-5)


def test_the_squared_length_is_kept_on_average() -> None:
    x = torch.randn(LENGTH) * torch.logspace(0, -2, LENGTH)
    ratios = [float(sketch(64, seed)(x).square().sum() / x.square().sum()) for seed in range(400)]
    spread = np.std(ratios) / len(ratios) ** 0.5
    assert abs(np.mean(ratios) - 1) < 4 * spread
    assert spread < 0.02


def test_seeds_make_other_sketches_and_depend_on_contract_round_and_probe() -> None:
    x = torch.randn(LENGTH)
    assert torch.equal(sketch(seed=1)(x), sketch(seed=1)(x))
    assert not torch.equal(sketch(seed=1)(x), sketch(seed=2)(x))
    seeds = {
        sketch_seed(digest, round=round, probe=probe)
        for digest in ("a" * 64, "b" * 64)
        for round in (1, 2)
        for probe in (0, 1, 2)
    }
    assert len(seeds) == 12


@pytest.mark.parametrize("network", [NETWORK, UNet(levels=1, width=4)])
def test_whitened_layers_weigh_the_same_a_coordinate_and_the_norm_is_kept(
    network: Network,
) -> None:
    counts = [layer.parameters for layer in layers(network)]
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(0, -1.5, len(counts)).repeat_interleave(torch.tensor(counts))
    gradient = sizes * torch.randn(sum(counts), generator=generator)
    scales = layer_scales(network, gradient)
    assert are_scales(scales[None].numpy(), network, probes=1)
    whitened = gradient / scales.repeat_interleave(torch.tensor(counts))
    means = torch.stack([part.square().mean() for part in whitened.split(counts)])
    torch.testing.assert_close(means, means.mean().expand_as(means))
    torch.testing.assert_close(whitened.norm(), gradient.norm())
    one = Sketch(network, size=16, seed=3, scales=scales)
    bare = Sketch(network, size=16, seed=3, scales=ones(network))
    torch.testing.assert_close(one(gradient), bare(whitened), rtol=1e-4, atol=1e-5)


def test_a_layer_without_a_gradient_is_raised_within_the_limits() -> None:
    gradient = initial_weights(NETWORK, seed=0)
    gradient[: layers(NETWORK)[0].parameters] = 0
    scales = layer_scales(NETWORK, gradient)
    assert are_scales(scales[None].numpy(), NETWORK, probes=1)
    assert torch.equal(layer_scales(NETWORK, torch.zeros(LENGTH)), ones())


@pytest.mark.parametrize(
    ("scales", "honest"),
    [
        (np.ones((2, 3)), True),
        (np.full((2, 3), LEAST_SCALE), True),
        (np.full((2, 3), 2 * LARGEST_SCALE), False),
        (np.zeros((2, 3)), False),
        (-np.ones((2, 3)), False),
        (np.full((2, 3), np.nan), False),
        (np.full((2, 3), np.inf), False),
        (np.ones((1, 3)), False),
        (np.ones((2, 4)), False),
        (np.ones(3), False),
    ],
)
def test_scales_of_an_honest_size_are_told_from_others(scales: np.ndarray, honest: bool) -> None:
    assert are_scales(scales.astype(np.float32), NETWORK, probes=2) is honest
