"""Low-dose CT denoising: what a scan at a stated dose would have looked like.

1. HU to attenuation, mu = 0.0193/mm x (1 + HU/1000) (water at 70 keV, NIST XCOM).
2. Parallel-beam line integrals p; mean transmission exp(-p).
3. Tube-current modulation: every view of every slice gets the current that lets ``photons`` through
   behind its thickest ray (full angular and z modulation; Kalender et al., Med. Phys. 26, 2248,
   1999).
4. Photon counts N ~ Poisson(I exp(-p)) plus electronic noise of sigma photons; after the logarithm
   the line integral has variance (1/N)(1 + sigma^2/N).
5. The noise alone is filtered back-projected (Hann ramp) and added: LQ = HQ + FBP(noise).

Approximated, and said so in every release: the noise after the logarithm is taken as Gaussian with
the first-order variance (8% below that of Poisson counts' logarithm at 20 photons, 17% at 10);
mono-energetic, without scatter; a photon number is of one wide bin of the coarse grid, so it is no
scanner's dose; HQ images are themselves reconstructions with noise of their own; the pixel edge is
nominal. Step 2 may be done once a slice and kept: noise is then drawn without projecting again.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shared.tasks.parallel_beam import Geometry, ParallelBeam, parallel_beam
from shared.tasks.settings import CtDenoise

WATER_PER_MM = 0.0193
"""Linear attenuation of water at 70 keV, 1/mm."""


@dataclass(frozen=True)
class Dose:
    """The noise level of slices: standard deviation of their line integrals, (N, angles, bins)."""

    sigma: Tensor


def _beam(task: CtDenoise, device: torch.device) -> ParallelBeam:
    return parallel_beam(Geometry(task.size_px, task.angles, task.bins), device)


def dose(task: CtDenoise, hq: Tensor) -> Dose:
    """The noise level at which ``hq`` (N, 1, S, S), window units, would be scanned.

    Differentiable in ``hq``; detach it to project once and draw often.
    """
    hu = task.window_low_hu + (task.window_high_hu - task.window_low_hu) * hq
    attenuation = WATER_PER_MM * task.pixel_mm * (1 + hu / 1000).clamp_min(0)
    path = _beam(task, hq.device).project(attenuation)  # (N, angles, bins), dimensionless
    thickest = path.amax(dim=2, keepdim=True)  # (N, angles, 1)
    counts = task.photons * torch.exp(thickest - path)
    variance = (1 + task.electronic_sigma**2 / counts) / counts
    return Dose(sigma=variance.sqrt())


def draw(task: CtDenoise, level: Dose, *, generator: torch.Generator) -> Tensor:
    """One realisation of the image noise, (N, 1, S, S) in window units."""
    normal = torch.randn(level.sigma.shape, generator=generator, device=generator.device)
    noise = _beam(task, level.sigma.device).reconstruct(normal.to(level.sigma.device) * level.sigma)
    hu = noise * 1000 / (WATER_PER_MM * task.pixel_mm)
    return hu / (task.window_high_hu - task.window_low_hu)


def degrade(task: CtDenoise, hq: Tensor, *, seed: int) -> Tensor:
    """LQ of ``hq`` (N, 1, S, S), both in window units; the same seed gives the same noise.

    Differentiable in ``hq``, through the noise level too. LQ is not clipped: clipping would bias
    it.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return hq + draw(task, dose(task, hq), generator=generator)
