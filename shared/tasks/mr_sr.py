"""MR super-resolution: a smaller acquisition matrix, zero-filled to the same grid.

LQ = |P (HQ + n)|: P keeps the central 1/``factor`` of k-space on each axis, S // factor indices
-S/2f .. S/2f - 1, and sets the rest to zero: the truncation of a scan of lower resolution, Gibbs
ringing included (Bernstein, King & Zhou, *Handbook of MRI Pulse Sequences*, 2004, ch. 1.1, 13.1).
``sigma`` is each channel's noise were all of k-space acquired; LQ holds sigma / factor of it, as a
larger voxel does.
"""

import torch
from torch import Tensor

from shared.tasks.kspace import central, with_noise, zero_filled
from shared.tasks.settings import MrSr


def truncation(task: MrSr, hq: Tensor) -> Tensor:
    """Which k-space samples are kept, (S, S) of 0 and 1, on the device and type of ``hq``."""
    size = hq.shape[-1]
    kept = central(size, size // task.factor, device=hq.device).to(hq.dtype)
    return kept[:, None] * kept


def observe(task: MrSr, hq: Tensor, level: Tensor, *, generator: torch.Generator) -> Tensor:
    """One LQ of ``hq``, both (N, 1, S, S) in window units; differentiable in ``hq``."""
    noisy = with_noise(hq, task.sigma, generator=generator)
    return zero_filled(noisy, level, axes=(-2, -1)).abs()
