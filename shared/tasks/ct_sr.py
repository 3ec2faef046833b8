"""CT super-resolution: a coarser detector or thicker slices, interpolated back to the fine grid.

1. Aperture: HQ is averaged with Gaussian weights of full width at half maximum ``blur_fwhm``
   sampling distances (observation model of Greenspan, *Computer Journal* 52, 43, 2009).
2. Sampling: one LQ sample every ``factor`` HQ pixels, centred on its block of them: along rows and
   columns (``in-plane``), or along the row axis alone (``slice``: rows are then slice positions of
   a reformatted volume and ``blur_fwhm`` is slice thickness over increment).
3. White Gaussian noise of ``noise_hu`` on every LQ sample.
4. Bicubic interpolation at the HQ pixels' own positions (Keys, IEEE Trans. ASSP 29, 1153, 1981,
   a = -1/2).

LQ = U (D HQ + n) with D and U separable matrices, so the adjoint is their transpose. Beyond its
edges an image goes on with its outermost pixel. Where ``factor`` does not divide the size there is
one more LQ sample for the pixels left over, and positions stay exact: nothing is cropped.

The Gaussian is taken at the pixels' centres: from a width of 2 pixels on its modulation is
exp(-2 (pi s f)^2), s = FWHM / 2.355 in pixels and f in cycles a pixel; a narrower one becomes the
mean of the two pixels nearest the sample, whose modulation is cos(pi f).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.tasks.noise import white
from shared.tasks.settings import CtSr

REACH = 4.0
"""Standard deviations after which the aperture is cut."""


@dataclass(frozen=True)
class Sampling:
    """The operators of one axis, and whether the columns are sampled as the rows are."""

    aperture: Tensor  # (L, S): aperture and sampling
    interpolation: Tensor  # (S, L)
    both_axes: bool

    def sample(self, image: Tensor) -> Tensor:
        """D: (N, 1, S, S) to the LQ samples, (N, 1, L, L) or (N, 1, L, S)."""
        return self._along(self.aperture, image)

    def interpolate(self, samples: Tensor) -> Tensor:
        """U: LQ samples back to (N, 1, S, S)."""
        return self._along(self.interpolation, samples)

    def _along(self, matrix: Tensor, image: Tensor) -> Tensor:
        rows = matrix @ image
        return rows @ matrix.T if self.both_axes else rows


def sampling(task: CtSr, hq: Tensor) -> Sampling:
    """The operators on the grid, device and type of ``hq`` (N, 1, S, S)."""
    size = hq.shape[-1]
    count = math.ceil(size / task.factor)
    return Sampling(
        aperture=torch.from_numpy(_aperture(size, count, task)).to(hq),
        interpolation=torch.from_numpy(_bicubic(size, count, task.factor)).to(hq),
        both_axes=task.direction == "in-plane",
    )


def observe(task: CtSr, hq: Tensor, level: Sampling, *, generator: torch.Generator) -> Tensor:
    """One LQ of ``hq``, both (N, 1, S, S) in window units; differentiable in ``hq``."""
    samples = level.sample(hq)
    sigma = task.noise_hu / (task.window_high_hu - task.window_low_hu)
    if sigma > 0:
        samples = samples + sigma * white(samples, generator=generator)
    return level.interpolate(samples)


def _aperture(size: int, count: int, task: CtSr) -> NDArray[np.float64]:
    """Gaussian weights (count, size) around the samples' centres; every row sums to 1."""
    sigma = task.blur_fwhm * task.factor / math.sqrt(8 * math.log(2))
    margin = math.ceil(REACH * sigma) + task.factor
    pixels = np.arange(-margin, size + margin)
    centres = np.arange(count) * task.factor + (task.factor - 1) / 2
    weights = np.exp(-0.5 * ((pixels - centres[:, None]) / sigma) ** 2)
    weights[np.abs(pixels - centres[:, None]) > max(REACH * sigma, 0.5)] = 0
    return _edges_repeated(weights / weights.sum(axis=1, keepdims=True), pixels, size)


def _bicubic(size: int, count: int, factor: int) -> NDArray[np.float64]:
    """Keys' weights (size, count) of the LQ samples at every HQ pixel."""
    positions = (np.arange(size) - (factor - 1) / 2) / factor  # in LQ samples
    samples = np.arange(-2, count + 2)
    distance = np.abs(positions[:, None] - samples)
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return _edges_repeated(weights, samples, count)


def _edges_repeated(
    weights: NDArray[np.float64], positions: NDArray[np.int_], size: int
) -> NDArray[np.float64]:
    """Weights of positions outside 0..size-1 added to those of the nearest one inside."""
    inside: NDArray[np.float64] = weights @ np.eye(size)[np.clip(positions, 0, size - 1)]
    return inside
