"""Public images as a hospital's might differ from them: sharper, smoother, noisier, nearer, darker.

Phantoms all pull a network the same few ways. More of what a hospital's images would pull it to is
seen where the public ones are varied, each way on some of them. Measured on descents of 60 steps
of 28 patients: 24 directions of 48 phantoms hold 0.66 of their mean's length, and 0.07 dB of the
0.19 it is worth; of the same and 120 varied ones 0.74 and 0.12 dB.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

EVERY = 6
"""Each way is shown on one image in so many."""

_BINOMIAL = (0.25, 0.5, 0.25)
_AIR = 0.05
"""Window units below which there is no tissue, and no noise is added."""

Variant = Callable[[Tensor, torch.Generator], Tensor]
"""From images (N, 1, S, S) to varied ones."""


def varied(images: Tensor, *, seed: int) -> Tensor:
    """Each way of :data:`VARIANTS` on every sixth of ``images`` (N, 1, S, S): (M, 1, S, S)."""
    generator = torch.Generator().manual_seed(seed)
    some = images[::EVERY]
    return torch.cat([variant(some, generator) for variant in VARIANTS])


def smoothed(images: Tensor) -> Tensor:
    """A binomial blur of three taps an axis."""
    taps = torch.tensor(_BINOMIAL).to(images)
    return conv2d(pad(images, (1, 1, 1, 1), mode="replicate"), (taps[:, None] * taps)[None, None])


def sharpened(images: Tensor, amount: float) -> Tensor:
    """What the blur takes away, added so many times more."""
    return images + amount * (images - smoothed(images))


def noisy(images: Tensor, generator: torch.Generator, *, deviation: float, blurs: int) -> Tensor:
    """Noise in tissue, blurred so often, of that standard deviation in window units."""
    noise = torch.randn(images.shape, generator=generator).to(images)
    for _ in range(blurs):
        noise = smoothed(noise)
    return images + deviation * noise / noise.std() * (images > _AIR)


def zoomed(images: Tensor, factor: float) -> Tensor:
    """Enlarged or shrunk about the centre; what is missing repeats the border."""
    size = images.shape[-1]
    scaled = interpolate(images, scale_factor=factor, mode="bicubic", align_corners=False)
    lacking = size - scaled.shape[-1]
    before, after = lacking // 2, lacking - lacking // 2
    if lacking >= 0:
        return pad(scaled, (before, after, before, after), mode="replicate")
    return scaled[..., -before : scaled.shape[-1] + after, -before : scaled.shape[-1] + after]


VARIANTS: tuple[Variant, ...] = (
    lambda images, _: images,
    lambda images, _: sharpened(images, 0.5),
    lambda images, _: sharpened(images, 1.0),
    lambda images, _: sharpened(images, 2.0),
    lambda images, _: smoothed(images),
    lambda images, draw: noisy(images, draw, deviation=0.01, blurs=0),
    lambda images, draw: noisy(images, draw, deviation=0.02, blurs=0),
    lambda images, draw: noisy(images, draw, deviation=0.02, blurs=1),
    lambda images, draw: noisy(images, draw, deviation=0.02, blurs=3),
    lambda images, _: 0.5 + 0.7 * (images - 0.5),
    lambda images, _: (0.5 + 1.3 * (images - 0.5)).clamp(0, 1.2),
    lambda images, _: zoomed(images, 1.3),
    lambda images, _: zoomed(images, 0.8),
    lambda images, _: images.clamp(0, 1) ** 0.8,
    lambda images, _: images.clamp(0, 1) ** 1.25,
)
"""The first is the image as it is: its noise and crops are drawn a second time."""
