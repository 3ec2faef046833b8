"""Cartesian k-space of magnitude images: acquired samples, zero-filling, noise, magnitude.

The transform is orthonormal, so white noise of sigma a channel (real, imaginary) on every k-space
sample is white noise of sigma a channel in the fully sampled image, and noise may be added in
either. An axis of S samples has the indices -S/2 .. S/2 - 1, kept in FFT order (0 first).
Single coil, no relaxation during the readout, and no phase of the object: HQ are magnitudes.
"""

import torch
from torch import Tensor

from shared.tasks.noise import white


def indices(size: int, *, device: torch.device) -> Tensor:
    """The k-space indices of an axis in FFT order: (size,) integers."""
    centred = torch.arange(size, device=device) - size // 2
    return centred.roll(-(size // 2))


def central(size: int, count: int, *, device: torch.device) -> Tensor:
    """Which indices are the ``count`` central ones, -count/2 .. count/2 - 1: (size,) booleans."""
    k = indices(size, device=device)
    return torch.logical_and(k >= -(count // 2), k < count - count // 2)


def zero_filled(image: Tensor, acquired: Tensor, *, axes: tuple[int, ...]) -> Tensor:
    """The complex image of the acquired samples alone, those of the other samples being zero.

    ``acquired`` is 1 or 0 at every index along ``axes`` and broadcasts to ``image`` (N, 1, S, S). A
    self-adjoint projector: applied twice it is itself.
    """
    filled: Tensor = torch.fft.ifftn(torch.fft.fftn(image, dim=axes) * acquired, dim=axes)
    return filled


def with_noise(image: Tensor, sigma: float, *, generator: torch.Generator) -> Tensor:
    """``image`` plus complex white noise of ``sigma`` a channel; ``image`` itself where it is 0."""
    if sigma == 0:
        return image
    real = white(image, generator=generator)
    imaginary = white(image, generator=generator)
    return torch.complex(image + sigma * real, sigma * imaginary)
