"""The families of enhancement networks: the layers of each, and what becomes of an image in them.

A family is two functions: a table of its layers, in the order of the flat vector, and a forward
pass over the convolutions made of them, which returns the correction to be added to the image.
All run at constant image size, without normalisation layers and without a rectifier on the output,
whose correction has either sign.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from shared.architectures import DnCnn, Edsr, Network, RedCnn, Residual, UNet

Convolution = Callable[[Tensor], Tensor]
"""A layer with its weights in it: (N, in, H, W) to (N, out, H, W)."""

LAST_GAIN = 0.1
"""Of the last layer's initial weights: a network starts near the identity."""
LINEAR_GAIN = math.sqrt(0.5)
"""Of a layer that no rectifier follows: keeps the variance (He et al. 2015, with a slope of 1)."""
RED_CNN_SHORTCUTS = (2, 4)
"""Encoder layers of RED-CNN whose outputs return in the decoder, beside the input's."""


@dataclass(frozen=True)
class Layer:
    """A convolution of odd ``kernel``, stride 1, size kept; weight before bias."""

    outputs: int
    inputs: int
    kernel: int = 3
    transposed: bool = False
    gain: float = 1.0
    """Initial weights are uniform within ``gain`` times Kaiming's bound for rectified layers."""

    @property
    def weights(self) -> int:
        """Entries of the weight, without the bias."""
        return self.outputs * self.inputs * self.kernel**2

    @property
    def parameters(self) -> int:
        """Entries of weight and bias."""
        return self.weights + self.outputs


@functools.cache
def layers(network: Network) -> tuple[Layer, ...]:
    """The layers of ``network`` in the order of its flat vector."""
    if isinstance(network, Residual | DnCnn):
        return tuple(_plain_layers(network.depth, network.width))
    if isinstance(network, RedCnn):
        return tuple(_red_cnn_layers(network.width))
    if isinstance(network, Edsr):
        return tuple(_edsr_layers(network.blocks, network.width))
    return tuple(_unet_layers(network.levels, network.width))


def correction(network: Network, convolutions: Sequence[Convolution], image: Tensor) -> Tensor:
    """What ``network`` adds to ``image`` (N, 1, H, W), H and W at least 8; the same shape."""
    if isinstance(network, UNet):
        return _unet(network.levels, convolutions, image)
    if isinstance(network, RedCnn):
        return _red_cnn(convolutions, image)
    if isinstance(network, Edsr):
        return _edsr(convolutions, image)
    return _plain(convolutions, image)


def _plain_layers(depth: int, width: int) -> Iterator[Layer]:
    """A chain: the probe network, and DnCNN (Zhang et al. 2017, Fig. 1) without normalisation."""
    yield Layer(width, 1)
    for _ in range(depth - 2):
        yield Layer(width, width)
    yield Layer(1, width, gain=LAST_GAIN)


def _plain(convolutions: Sequence[Convolution], image: Tensor) -> Tensor:
    *hidden, last = convolutions
    for convolve in hidden:
        image = functional.relu(convolve(image))
    return last(image)


def _red_cnn_layers(width: int) -> Iterator[Layer]:
    """RED-CNN (Chen et al. 2017, Fig. 1): five 5x5 convolutions, five transposed."""
    yield Layer(width, 1, 5)
    for number in range(8):
        yield Layer(width, width, 5, transposed=number >= 4)
    yield Layer(1, width, 5, transposed=True, gain=LAST_GAIN)


def _red_cnn(convolutions: Sequence[Convolution], image: Tensor) -> Tensor:
    """Zero padding in place of the paper's shrinking; the input's shortcut is the correction's."""
    half = len(convolutions) // 2
    kept: dict[int, Tensor] = {}
    hidden = image
    for number, convolve in enumerate(convolutions[:half], start=1):
        hidden = functional.relu(convolve(hidden))
        if number in RED_CNN_SHORTCUTS:
            kept[number] = hidden
    # The k-th transposed convolution undoes encoder layer 6 - k: it meets the output of 5 - k.
    for number, convolve in enumerate(convolutions[half:-1], start=1):
        hidden = convolve(hidden)
        if half - number in kept:
            hidden = hidden + kept[half - number]
        hidden = functional.relu(hidden)
    return convolutions[-1](hidden)


def _edsr_layers(blocks: int, width: int) -> Iterator[Layer]:
    """EDSR (Lim et al. 2017, Fig. 3): head, blocks of two, body, tail; no upsampler.

    The second layer of a block starts smaller by the root of their number: sixteen sums without it
    would multiply the variance by 3^16.
    """
    yield Layer(width, 1, gain=LINEAR_GAIN)
    for _ in range(blocks):
        yield Layer(width, width)
        yield Layer(width, width, gain=LINEAR_GAIN / math.sqrt(blocks))
    yield Layer(width, width, gain=LINEAR_GAIN)
    yield Layer(1, width, gain=LAST_GAIN)


def _edsr(convolutions: Sequence[Convolution], image: Tensor) -> Tensor:
    head, *blocks, body, tail = convolutions
    start = hidden = head(image)
    for first, second in zip(blocks[::2], blocks[1::2], strict=True):
        hidden = hidden + second(functional.relu(first(hidden)))
    return tail(start + body(hidden))


def _unet_layers(levels: int, width: int) -> Iterator[Layer]:
    """U-Net (Ronneberger et al. 2015, Fig. 1): two 3x3 layers a level down, up, and a 1x1 last."""
    channels = [width * 2**level for level in range(levels + 1)]
    inputs = 1
    for outputs in channels:
        yield Layer(outputs, inputs)
        yield Layer(outputs, outputs)
        inputs = outputs
    for outputs in reversed(channels[:-1]):
        yield Layer(outputs, 2 * outputs, gain=LINEAR_GAIN)  # behind the upsampling
        yield Layer(outputs, 2 * outputs)  # of the concatenation
        yield Layer(outputs, outputs)
    yield Layer(1, width, 1, gain=LAST_GAIN)


def _unet(levels: int, convolutions: Sequence[Convolution], image: Tensor) -> Tensor:
    """Sizes that 2^levels does not divide are extended by their last row and column, then cut."""
    height, width = image.shape[-2:]
    step = 2**levels
    extended = (0, -width % step, 0, -height % step)
    # Reflection would need an image larger than what it lacks.
    hidden = functional.pad(image, extended, mode="replicate") if any(extended) else image
    coming = iter(convolutions)

    def two(hidden: Tensor) -> Tensor:
        for convolve in itertools.islice(coming, 2):
            hidden = functional.relu(convolve(hidden))
        return hidden

    kept = []
    for _ in range(levels):
        hidden = two(hidden)
        kept.append(hidden)
        hidden = functional.avg_pool2d(hidden, 2)
    hidden = two(hidden)
    for shortcut in reversed(kept):
        hidden = functional.interpolate(
            hidden, scale_factor=2, mode="bilinear", align_corners=False
        )
        hidden = two(torch.cat([shortcut, next(coming)(hidden)], dim=1))
    return next(coming)(hidden)[..., :height, :width]
