"""Probe and student networks: convolutional, residual, without normalisation layers.

A network is a description (:data:`shared.architectures.Network`) and a flat float32 vector, laid
out layer by layer, weight before bias. Batch statistics would leak and would make a gradient depend
on its batch companions, so there are none.
"""

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from shared.architectures import Network
from shared.families import Convolution, Layer, correction, layers

LAYOUT = torch.channels_last
"""Channels-last convolutions take a quarter less time on CPUs and use tensor cores on GPUs."""


def parameter_count(network: Network) -> int:
    """Length D of the flat vector."""
    return sum(layer.parameters for layer in layers(network))


def initial_weights(network: Network, *, seed: int) -> Tensor:
    """Kaiming-uniform weights (He et al. 2015), zero biases; the last layer is scaled by 0.1.

    The small last layer starts the network near the identity. Returns (D,), on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for layer in layers(network):
        bound = math.sqrt(6.0 / (layer.inputs * layer.kernel**2)) * layer.gain
        weight = torch.rand(layer.weights, generator=generator) * 2 * bound - bound
        parts += [weight, torch.zeros(layer.outputs)]
    return torch.cat(parts)


def apply_network(
    network: Network, weights: Tensor, image: Tensor, *, layout: torch.memory_format = LAYOUT
) -> Tensor:
    """Enhances ``image`` (N, 1, H, W) with flat ``weights`` (D,): image + correction.

    Differentiable in both, twice; H and W are at least 8, and kept. Under ``torch.func.vmap``,
    which knows no other, ``layout`` must be the contiguous one. Raises ``ValueError`` on a vector
    of another length.
    """
    if weights.numel() != parameter_count(network):
        raise ValueError(
            f"{weights.numel()} weights for a network of {parameter_count(network)} parameters"
        )
    convolutions = list(_convolutions(network, weights, layout))
    return image + correction(network, convolutions, image.contiguous(memory_format=layout))


def restoration_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over everything, in window units: the loss all gradients are of."""
    return functional.mse_loss(output, target)


def _convolutions(
    network: Network, weights: Tensor, layout: torch.memory_format
) -> Iterator[Convolution]:
    """The layers of ``network`` with their parts of ``weights`` (D,) in them."""
    offset = 0
    for layer in layers(network):
        after = offset + layer.weights
        kernel, bias = weights[offset:after], weights[after : after + layer.outputs]
        offset += layer.parameters
        yield functools.partial(_convolve, layer, _kernel(layer, kernel, layout), bias)


def _kernel(layer: Layer, weight: Tensor, layout: torch.memory_format) -> Tensor:
    """(out, in, k, k), or (in, out, k, k) where transposed, as torch's own layers have it."""
    ends = (layer.inputs, layer.outputs) if layer.transposed else (layer.outputs, layer.inputs)
    return weight.view(*ends, layer.kernel, layer.kernel).contiguous(memory_format=layout)


def _convolve(layer: Layer, kernel: Tensor, bias: Tensor, image: Tensor) -> Tensor:
    convolve = functional.conv_transpose2d if layer.transposed else functional.conv2d
    return convolve(image, kernel, bias, padding=layer.kernel // 2)
