"""Accelerated MR: a random part of the phase-encode lines, zero-filled.

LQ = |M (HQ + n)|. Phase encoding runs along the rows' axis (from top to bottom), the readout along
the columns: a line of k-space is one index of axis -2, acquired whole or not at all. Of S lines
round(S / acceleration) are acquired. The central round(``centre_fraction`` S), at least one, always
are; the others are drawn anew for every image, one after another without replacement, at a density
that falls with the cube of the distance from the centre (variable density: Lustig, Donoho & Pauly,
Magn. Reson. Med. 58, 1182, 2007). ``sigma`` is each channel's noise in a fully sampled image; only
the acquired lines carry it.
"""

import torch
from torch import Tensor

from shared.tasks.kspace import central, indices, with_noise, zero_filled
from shared.tasks.settings import MrUndersampled

DENSITY_POWER = 3.0


def lines(task: MrUndersampled, hq: Tensor, *, generator: torch.Generator) -> Tensor:
    """The acquired lines of every image of ``hq`` (N, 1, S, S): (N, 1, S, 1) of 0 and 1."""
    images, size = hq.shape[0], hq.shape[-2]
    count = round(size / task.acceleration)
    centre = min(count, max(1, round(task.centre_fraction * size)))
    here = generator.device
    always = central(size, centre, device=here)
    distance = indices(size, device=here).abs() / (size / 2 + 1)
    density = (1 - distance) ** DENSITY_POWER * ~always
    acquired = always.to(torch.float32).repeat(images, 1)
    if count > centre:
        rows = density.expand(images, size)
        drawn = torch.multinomial(rows, count - centre, generator=generator)
        acquired.scatter_(1, drawn, 1.0)
    return acquired[:, None, :, None].to(hq)


def observe(task: MrUndersampled, hq: Tensor, *, generator: torch.Generator) -> Tensor:
    """One LQ of ``hq``, both (N, 1, S, S) in window units; differentiable in ``hq``."""
    acquired = lines(task, hq, generator=generator)
    noisy = with_noise(hq, task.sigma, generator=generator)
    # The readout's transform and its inverse cancel: only the phase-encode axis is transformed.
    return zero_filled(noisy, acquired, axes=(-2,)).abs()
