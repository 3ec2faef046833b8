"""Structure-Preserving Personalised Generation: from a shared prior to one persona's images.

    x = clamp( spectrum( tone( warp(prior) ) ) + residual )

1. ``warp``: a displacement u, uniform cubic B-splines on a coarse grid of spacing h pixels, its
   coefficients bounded by b = ``spg.warp_px`` / sqrt(2) in each component.
2. ``tone``: a monotone piecewise-linear curve of the intensities (positive slopes by softplus).
3. ``spectrum``: the image's bands of spatial frequency (differences of box means of edge 1, 3, 5,
   9, 17) times 1 + g, -3 < g < 3 by tanh: hospitals' kernels and matrices are sharper or smoother
   than any prior, and that is most of what an input can get wrong (`docs/method.md`).
4. ``residual``: a sum of cubic B-splines of spacings 2^(L-1), ..., 2, 1 pixels, whose coefficients
   are bounded by ``spg.residual_bound`` at the coarsest and by half as much at each finer one.

*The warp cannot fold.* B-splines are positive and sum to 1, so a component of u is at most b, and u
no longer than ``warp_px``. A derivative of a cubic spline is a quadratic spline whose coefficients
are differences of neighbours over h: each of the four partial derivatives of u is at most
q = 2b/h. The grid is chosen so that q <= 0.48. Hence |Du| <= 2q <= 0.96 < 1 in the Frobenius norm:
u is a contraction and x + u(x) one to one; and its Jacobian determinant is at least
(1 - q)^2 - q^2 = 1 - 2q >= 0.04 everywhere, between pixels and for finite differences too. (Choi
and Lee, 2000, used by Rueckert et al., MICCAI 2006, need only b < 0.48 h, twice as much; this proof
is four lines.)

*The residual's spectrum.* A level of spacing h has the spectrum of its coefficients times
sinc(hf)^4: of white coefficients, beyond 1/h cycles a pixel less than a thousandth of the power is
left, and the finest scale alone, with the smallest bound, reaches a pixel. Splines never exceed
their coefficients, so the residual is at most the sum of the levels' bounds, ``residual_bound``
(2 - 2^(1-L)).

All parameters zero is the identity on images in [0, 1]. A part that the contract switches off has
no parameters. The parameters are no part of a release, which holds images alone: they count as
bytes only if they are published. Form and bounds are ours: arXiv 2511.13106 is known by its
abstract alone.
"""

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

from shared.contract import Spg

WARP_CELLS = 6
"""Cells of the warp's grid along an edge; fewer where ``warp_px`` would let it fold."""
STEEPEST = 0.48
"""Largest partial derivative of a displacement; below a half nothing folds."""
TONE_KNOTS = 16
BAND_EDGES = (3, 5, 9, 17)
"""Edges of the box means, pixels, whose differences are the bands of the spectrum."""
GAIN_BOUND = 3.0

Parameters = dict[str, Tensor]


def identity_parameters(images: int, size_px: int, spg: Spg) -> Parameters:
    """Parameters that leave the prior as it is, those of the parts that ``spg`` switches on.

    ``warp`` (N, 2, g, g), ``tone`` (N, k), ``spectrum`` (N, 4) and ``residual0``, the finest, to
    ``residual{L-1}`` (N, 1, g, g): coefficients before they are bounded.
    """
    parameters = {}
    if spg.warp:
        edge = _nodes(size_px, _warp_spacing(size_px, spg))
        parameters["warp"] = torch.zeros(images, 2, edge, edge)
    if spg.tone:
        parameters["tone"] = torch.zeros(images, TONE_KNOTS)
    if spg.spectrum:
        parameters["spectrum"] = torch.zeros(images, len(BAND_EDGES))
    if spg.residual:
        for level in range(spg.residual_levels):
            edge = _nodes(size_px, 2.0**level)
            parameters[f"residual{level}"] = torch.zeros(images, 1, edge, edge)
    return parameters


def personalise(prior: Tensor, parameters: Parameters, spg: Spg) -> Tensor:
    """The persona's images of ``prior``, both (N, 1, S, S) in [0, 1]; differentiable in both."""
    return personalise_at_price(prior, parameters, spg)[0]


def personalise_at_price(prior: Tensor, parameters: Parameters, spg: Spg) -> tuple[Tensor, Tensor]:
    """The persona's images and the price of a change that is not smooth: their roughness.

    The roughness is the residual's mean squared gradient, (); the residual is computed once.
    """
    size = prior.shape[-1]
    images, price = prior, torch.zeros((), device=prior.device)
    if spg.warp:
        images = _warped(images, displacement(parameters, spg, size_px=size))
    if spg.tone:
        images = _toned(images, parameters["tone"])
    if spg.spectrum:
        images = _equalised(images, parameters["spectrum"])
    if spg.residual:
        change = residual(parameters, spg, size_px=size)
        images = images + change
        price = change.diff(dim=-1).square().mean() + change.diff(dim=-2).square().mean()
    return images.clamp(0, 1), price


def displacement(parameters: Parameters, spg: Spg, *, size_px: int) -> Tensor:
    """The warp's u (N, 2, S, S) at the pixels' centres: pixels to the right, pixels down.

    The image at a pixel p is the prior's at p + u(p).
    """
    bound = spg.warp_px / math.sqrt(2)
    return _spline(
        bound * torch.tanh(parameters["warp"]), _warp_spacing(size_px, spg), size_px=size_px
    )


def residual_bounds(spg: Spg) -> list[float]:
    """Largest absolute value of each level, the finest first, window units."""
    levels = spg.residual_levels
    return [spg.residual_bound * 2.0 ** (level - levels + 1) for level in range(levels)]


def residual_level(parameters: Parameters, spg: Spg, level: int, *, size_px: int) -> Tensor:
    """One scale of the residual, (N, 1, S, S) in window units."""
    bound = residual_bounds(spg)[level]
    bounded = bound * torch.tanh(parameters[f"residual{level}"] / bound)
    return _spline(bounded, 2.0**level, size_px=size_px)


def residual(parameters: Parameters, spg: Spg, *, size_px: int) -> Tensor:
    """The whole residual, (N, 1, S, S) in window units."""
    total = residual_level(parameters, spg, 0, size_px=size_px)
    for level in range(1, spg.residual_levels):
        total = total + residual_level(parameters, spg, level, size_px=size_px)
    return total


def _warp_spacing(size_px: int, spg: Spg) -> float:
    steepest_allowed = 2 * spg.warp_px / math.sqrt(2) / STEEPEST
    return max(size_px / WARP_CELLS, steepest_allowed)


def _nodes(size_px: int, spacing: float) -> int:
    """Coefficients along an edge; single pixels need no spline."""
    return size_px if spacing == 1 else math.ceil(size_px / spacing) + 3


@functools.lru_cache(maxsize=16)
def _basis(size_px: int, spacing: float, device: torch.device) -> Tensor:
    """Uniform cubic B-splines at the pixels' centres: (S, nodes), rows sum to 1."""
    position = (torch.arange(size_px, dtype=torch.float64) + 0.5) / spacing
    # Node j stands at j - 1 cells, so that the first and last pixel have four nodes each.
    offset = (position[:, None] - (torch.arange(_nodes(size_px, spacing)) - 1)).abs()
    near = 2 / 3 - offset.square() + offset**3 / 2
    far = (2 - offset).clamp_min(0) ** 3 / 6
    return torch.where(offset < 1, near, far).to(device, torch.float32)


def _spline(coefficients: Tensor, spacing: float, *, size_px: int) -> Tensor:
    """(N, C, g, g) coefficients to the pixels' (N, C, S, S): two small products."""
    if spacing == 1:
        return coefficients
    basis = _basis(size_px, spacing, coefficients.device)
    return basis @ coefficients @ basis.T


@functools.lru_cache(maxsize=4)
def _pixel_grid(size_px: int, device: torch.device) -> Tensor:
    """Coordinates (S, S, 2), x before y, in the units of ``grid_sample``: -1 and 1 are edges."""
    centre = (torch.arange(size_px, device=device) + 0.5) * 2 / size_px - 1
    return torch.stack(torch.meshgrid(centre, centre, indexing="xy"), dim=-1)


def _warped(image: Tensor, field: Tensor) -> Tensor:
    size = image.shape[-1]
    grid = _pixel_grid(size, image.device) + field.permute(0, 2, 3, 1) * (2 / size)
    return functional.grid_sample(
        image, grid, mode="bilinear", padding_mode="border", align_corners=False
    )


def bands(image: Tensor) -> list[Tensor]:
    """The bands of ``image`` (N, 1, S, S), the finest first; with the last mean they sum to it."""
    finer, differences = image, []
    for edge in BAND_EDGES:
        padded = functional.pad(image, (edge // 2,) * 4, mode="replicate")
        coarser = functional.avg_pool2d(padded, edge, stride=1)
        differences.append(finer - coarser)
        finer = coarser
    return differences


def _equalised(image: Tensor, raw: Tensor) -> Tensor:
    gains = GAIN_BOUND * torch.tanh(raw / GAIN_BOUND)
    total = image
    for band, gain in zip(bands(image), gains.T, strict=True):
        total = total + gain[:, None, None, None] * band
    return total


def _toned(image: Tensor, raw: Tensor) -> Tensor:
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
