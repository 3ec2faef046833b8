"""MR denoising: Rician noise, as magnitude images of one coil have.

LQ = |HQ + n1 + i n2| with n1, n2 white Gaussian of ``sigma``. Where HQ = A, LQ is Rician:
E[LQ^2] = A^2 + 2 sigma^2, and in air its mean is sigma sqrt(pi/2) (Gudbjartsson & Patz, Magn.
Reson. Med. 34, 910, 1995; Koay & Basser, J. Magn. Reson. 179, 317, 2006). The bias is part of LQ.
"""

import torch
from torch import Tensor

from shared.tasks.kspace import with_noise
from shared.tasks.settings import MrDenoise


def observe(task: MrDenoise, hq: Tensor, *, generator: torch.Generator) -> Tensor:
    """One LQ of ``hq``, both (N, 1, S, S) in window units; differentiable in ``hq``."""
    return with_noise(hq, task.sigma, generator=generator).abs()
