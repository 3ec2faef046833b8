"""How far a distilled gradient is from a hospital's, and which way the images should move.

Distances of flat gradients (D,), or but for the cosines of their sketches, each 0 where the two
agree:

- ``l2``: whole-gradient relative squared L2; keeps the norm that a cosine forgets.
- ``cosine``: filter-wise cosine of dataset condensation (Zhao, Mopuri, Bilen, ICLR 2021).
- ``cosine-norm``: the same, and the squared logarithm of the ratio of the gradients' norms.
- ``snr``: ``l2`` with each coordinate weighted by how far the hospitals agree on it.

Forms of its derivative in the images x, where g(x) is the gradient in the weights theta:

- ``exact``: double backward, d(distance)/dg dg/dx.
- ``finite-difference``: with v = d(distance)/dg, the same product is d/dx <v, grad_theta L(x)>,
  whose central difference along v needs two ordinary derivatives in x. No graph of a graph is
  kept; kinks of the rectifiers between the two points make it inexact.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from shared.architectures import Network
from shared.families import layers

BEND = 2.0
"""Of the median persona's distance, from where on a persona's is no longer squared."""

Distance = Callable[[Tensor], Tensor]
"""From a distilled gradient (D,) to its distance ()."""
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From weights (D,), LQ and HQ (N, 1, H, W) to the mean restoration loss ()."""
DistanceName = Literal["l2", "cosine", "cosine-norm", "snr"]

LEAST_NORM = 1e-3
"""A distilled filter's norm, in units of its target's, below which its cosine falls to zero."""
STEP = 2e-3
"""Of the central difference, in units of the weights' norm: above rounding, below most kinks."""


def relative_squared_distance(distilled: Tensor, target: Tensor) -> Tensor:
    """|distilled - target|^2 / |target|^2 of two flat gradients (D,).

    Dividing by the target's norm lets probes of different depth count alike.
    """
    return (distilled - target).square().sum() / _positive(target.square().sum())


def filterwise_cosine(network: Network, distilled: Tensor, target: Tensor) -> Tensor:
    """Sum over output filters of 1 - cos, biases skipped (Zhao et al., ICLR 2021, eq. 5 and A.4).

    A filter whose target is zero, of a dead unit, counts nothing. Scales are forgotten.
    """
    total = distilled.new_zeros(())
    for ours, theirs in zip(filters(network, distilled), filters(network, target), strict=True):
        norm = theirs.norm(dim=1)
        # Where the distilled filter dies its direction is rounding; the bound keeps it quiet.
        lengths = torch.maximum(ours.norm(dim=1), LEAST_NORM * norm) * norm
        cosine = (ours * theirs).sum(dim=1) / _positive(lengths)
        total = total + torch.where(norm > 0, 1 - cosine, 0.0).sum()
    return total


def cosine_and_norm(network: Network, distilled: Tensor, target: Tensor) -> Tensor:
    """Mean over filters of 1 - cos, plus ln^2 of the ratio of the whole gradients' norms."""
    norm = _positive(target.norm())
    ratio = torch.maximum(distilled.norm(), LEAST_NORM * norm) / norm
    mean_cosine = filterwise_cosine(network, distilled, target) / filter_count(network)
    return mean_cosine + ratio.log().square()


def snr_weighted(distilled: Tensor, target: Tensor, variance: Tensor) -> Tensor:
    """``l2`` with weights w = target^2 / (target^2 + variance): sum w (d - t)^2 / sum w t^2.

    ``variance`` (D,) is that of the mean over hospitals, see :func:`variance_of_mean`; where it is
    zero every coordinate that the hospitals have counts as in ``l2``.
    """
    power = target.square()
    weight = power / _positive(power + variance)
    return (weight * (distilled - target).square()).sum() / _positive((weight * power).sum())


def variance_of_mean(values: Tensor) -> Tensor:
    """Variance of the mean of (S, ..., D) over S, by its spread; zero for a single one."""
    if values.shape[0] < 2:
        return torch.zeros_like(values[0])
    return values.var(dim=0, unbiased=True) / values.shape[0]


def filters(network: Network, vector: Tensor) -> Iterator[Tensor]:
    """The kernels of a flat weight or gradient (D,), (out, in * k * k) a layer; biases skipped."""
    offset = 0
    for layer in layers(network):
        kernel = vector[offset : offset + layer.weights]
        offset += layer.parameters
        if layer.transposed:
            taps = layer.kernel**2
            yield kernel.view(layer.inputs, layer.outputs, taps).transpose(0, 1).flatten(1)
        else:
            yield kernel.view(layer.outputs, -1)


def filter_count(network: Network) -> int:
    """Output filters of all layers."""
    return sum(layer.outputs for layer in layers(network))


def distance_to(
    target: Tensor, *, name: DistanceName, network: Network, variance: Tensor
) -> Distance:
    """The named distance to ``target`` (D,). ``cosine`` is the mean over filters, to be of the
    others' size; ``variance`` (D,) is used by ``snr`` alone.
    """
    if name == "l2":
        return lambda distilled: relative_squared_distance(distilled, target)
    if name == "snr":
        return lambda distilled: snr_weighted(distilled, target, variance)
    if name == "cosine-norm":
        return lambda distilled: cosine_and_norm(network, distilled, target)
    count = filter_count(network)
    return lambda distilled: filterwise_cosine(network, distilled, target) / count


def after(reduce: Callable[[Tensor], Tensor], distance: Distance) -> Distance:
    """The distance of what ``reduce`` makes of a gradient (D,)."""
    return lambda distilled: distance(reduce(distilled))


def watched(distance: Distance, *, target: Tensor, cosines: list[Tensor]) -> Distance:
    """``distance``, which notes the cosine () of each gradient it is given with ``target``."""

    def measured(distilled: Tensor) -> Tensor:
        cosines.append(torch.cosine_similarity(distilled.detach(), target, dim=0))
        return distance(distilled)

    return measured


def robust_mean(distances: Tensor) -> Tensor:
    """Mean of personas' distances (G,), of those that stand out no more than in proportion: ().

    Huber's function (1964) of their square roots, bent at :data:`BEND` times the median's: where
    nothing can match a persona's target, it pulls no harder the farther it is.
    """
    roots = _positive(distances).sqrt()
    bend = BEND * roots.detach().median()
    return torch.where(roots <= bend, distances, bend * (2 * roots - bend)).mean()


def exact_match(
    loss: Loss, *, weights: Tensor, lq: Tensor, hq: Tensor, distance: Distance
) -> Tensor:
    """The distance () of the pairs' gradient at ``weights``, with its exact derivative in them."""
    theta = weights.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(theta, lq, hq), theta, create_graph=True)
    return distance(gradient)


def finite_difference_match(
    loss: Loss, *, weights: Tensor, lq: Tensor, hq: Tensor, distance: Distance
) -> Tensor:
    """The distance () as in :func:`exact_match`, its derivative by central differences.

    [grad_x L(theta + e v/|v|) - grad_x L(theta - e v/|v|)] |v| / 2e with e = ``STEP`` |theta|. The
    two are taken one after the other, so that one forward pass is held at a time.
    """
    theta = weights.detach().requires_grad_(True)
    fixed_lq, fixed_hq = lq.detach(), hq.detach()
    (gradient,) = torch.autograd.grad(loss(theta, fixed_lq, fixed_hq), theta)
    gradient = gradient.requires_grad_(True)
    value = distance(gradient)
    (slope,) = torch.autograd.grad(value, gradient)
    length = _positive(slope.norm())
    step = STEP * _positive(weights.norm())
    inputs = fixed_lq.requires_grad_(True), fixed_hq.requires_grad_(True)
    sides = [
        torch.autograd.grad(loss(weights.detach() + sign * step / length * slope, *inputs), inputs)
        for sign in (1.0, -1.0)
    ]
    moved = lq.new_zeros(())
    for image, above, below in zip((lq, hq), *sides, strict=True):
        moved = moved + (image * (above - below)).sum() * (length / (2 * step))
    return value.detach() + moved - moved.detach()


def _positive(value: Tensor) -> Tensor:
    positive: Tensor = value.clamp_min(torch.finfo(value.dtype).tiny)
    return positive
