"""Structure-Preserving Personalised Generation: from a shared prior to one persona's images.

    x = clamp( tone( warp(prior) ) + residual )

1. ``warp``: displacement on a coarse grid, bicubically enlarged, bounded to a fraction of the
   grid's spacing, so that anatomy moves but does not fold.
2. ``tone``: a monotone piecewise-linear curve of the intensities (positive slopes by softplus).
3. ``residual``: a sum of four levels of an image pyramid, bounded by tanh; the coarse levels may
   move more than the fine ones, which keeps the spectrum of the change that of anatomy and not of
   noise.

All parameters zero is the identity on images in [0, 1]. Form and bounds are ours: arXiv 2511.13106
is known by its abstract alone.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

WARP_GRID = 6
WARP_BOUND = 0.25
"""Largest displacement in units of the grid's spacing; below 1/3 neighbours cannot cross."""
TONE_KNOTS = 16
RESIDUAL_LEVELS = 4
RESIDUAL_BOUND = 0.10
"""Largest change of a pixel by one level, window units (200 HU in the default window)."""

Parameters = dict[str, Tensor]


def identity_parameters(images: int, size_px: int) -> Parameters:
    """Parameters that leave the prior as it is: ``warp`` (N, 2, g, g), ``tone`` (N, k), pyramid."""
    parameters = {
        "warp": torch.zeros(images, 2, WARP_GRID, WARP_GRID),
        "tone": torch.zeros(images, TONE_KNOTS),
    }
    for level in range(RESIDUAL_LEVELS):
        edge = math.ceil(size_px / 2**level)
        parameters[f"residual{level}"] = torch.zeros(images, 1, edge, edge)
    return parameters


def personalise(prior: Tensor, parameters: Parameters) -> Tensor:
    """The persona's images of ``prior``, both (N, 1, S, S) in [0, 1]; differentiable in both."""
    warped = _warp(prior, parameters["warp"])
    toned = _tone(warped, parameters["tone"])
    return (toned + _residual(parameters, size_px=prior.shape[-1])).clamp(0, 1)


def roughness(parameters: Parameters, *, size_px: int) -> Tensor:
    """Mean squared gradient of the residual: the price of a change that is not smooth."""
    residual = _residual(parameters, size_px=size_px)
    return residual.diff(dim=-1).square().mean() + residual.diff(dim=-2).square().mean()


def _warp(image: Tensor, raw: Tensor) -> Tensor:
    count, _, size, _ = image.shape
    if not bool(raw.detach().any()) and not raw.requires_grad:
        return image
    bound = WARP_BOUND * 2 / (WARP_GRID - 1)
    field = functional.interpolate(
        bound * torch.tanh(raw), size=(size, size), mode="bicubic", align_corners=True
    )
    identity = torch.eye(2, 3, device=image.device).expand(count, 2, 3)
    grid = functional.affine_grid(identity, [count, 1, size, size], align_corners=False)
    return functional.grid_sample(
        image,
        grid + field.permute(0, 2, 3, 1),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )


def _tone(image: Tensor, raw: Tensor) -> Tensor:
    """Slopes softplus-positive and normalised, so that 0 and 1 stay where they are."""
    slopes = functional.softplus(raw + math.log(math.e - 1))  # 1 at raw = 0
    slopes = slopes / slopes.mean(dim=1, keepdim=True)
    knots = raw.shape[1]
    curve = functional.pad(slopes.cumsum(dim=1), (1, 0)) / knots  # (N, k + 1), 0 to 1
    position = image.clamp(0, 1) * knots
    lower = position.detach().floor().clamp(max=knots - 1)
    flat = lower.flatten(1).long()
    start = curve.gather(1, flat).view_as(image)
    slope = slopes.gather(1, flat).view_as(image) / knots
    return start + slope * (position - lower)


def _residual(parameters: Parameters, *, size_px: int) -> Tensor:
    total: Tensor | None = None
    for level in range(RESIDUAL_LEVELS):
        raw = parameters[f"residual{level}"]
        bound = RESIDUAL_BOUND * 2.0 ** (level - RESIDUAL_LEVELS + 1)
        layer = bound * torch.tanh(raw / bound)
        if level:
            layer = functional.interpolate(
                layer, size=(size_px, size_px), mode="bilinear", align_corners=False
            )
        total = layer if total is None else total + layer
    assert total is not None
    return total
