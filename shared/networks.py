"""Probe and student networks: residual convolutional networks without normalisation layers.

A network is a description (``Residual``) and a flat float32 vector, laid out layer by layer, weight
before bias. Batch statistics would leak and would make a gradient depend on its batch companions,
so there are none.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from shared.architectures import Residual


def layer_shapes(network: Residual) -> Iterator[tuple[int, int]]:
    """(out, in) channels of each 3x3 layer."""
    for layer in range(network.depth):
        inputs = 1 if layer == 0 else network.width
        outputs = 1 if layer == network.depth - 1 else network.width
        yield outputs, inputs


def parameter_count(network: Residual) -> int:
    """Length D of the flat vector."""
    return sum(outputs * inputs * 9 + outputs for outputs, inputs in layer_shapes(network))


def initial_weights(network: Residual, *, seed: int) -> Tensor:
    """Kaiming-uniform weights (He et al. 2015), zero biases; the last layer is scaled by 0.1.

    The small last layer starts the network near the identity. Returns (D,), on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for layer, (outputs, inputs) in enumerate(layer_shapes(network)):
        bound = math.sqrt(6.0 / (inputs * 9))
        if layer == network.depth - 1:
            bound *= 0.1
        weight = torch.rand(outputs * inputs * 9, generator=generator) * 2 * bound - bound
        parts += [weight, torch.zeros(outputs)]
    return torch.cat(parts)


def apply_network(network: Residual, weights: Tensor, image: Tensor) -> Tensor:
    """Enhances ``image`` (N, 1, H, W) with flat ``weights`` (D,): image + correction.

    Differentiable in both, twice. Raises ``ValueError`` on a vector of another length.
    """
    if weights.numel() != parameter_count(network):
        raise ValueError(
            f"{weights.numel()} weights for a network of {parameter_count(network)} parameters"
        )
    # Channels-last convolutions take a quarter less time on CPUs and use tensor cores on GPUs.
    layout = torch.channels_last
    hidden, offset = image.contiguous(memory_format=layout), 0
    for layer, (outputs, inputs) in enumerate(layer_shapes(network)):
        size = outputs * inputs * 9
        kernel = weights[offset : offset + size].view(outputs, inputs, 3, 3)
        kernel = kernel.contiguous(memory_format=layout)
        bias = weights[offset + size : offset + size + outputs]
        offset += size + outputs
        hidden = functional.conv2d(hidden, kernel, bias, padding=1)
        if layer < network.depth - 1:
            hidden = functional.relu(hidden)
    return image + hidden


def restoration_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over everything, in window units: the loss all gradients are of."""
    return functional.mse_loss(output, target)
