"""Whom an image follows: each persona's images are matched to its own target, all at one probe.

Images are dealt to the G personas in turn: image i follows persona i mod G.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad, vmap

from aggregator.distill.matching import Distance, exact_match, finite_difference_match
from shared.architectures import Network
from shared.networks import LAYOUT, apply_network

Form = Literal["exact", "finite-difference"]


def persona_distances(
    network: Network,
    *,
    weights: Tensor,
    windows: Tensor,
    counted: Tensor,
    distances: Sequence[Distance],
    form: Form,
    together: bool,
) -> Tensor:
    """Distance (G,) of each persona's images from its target, differentiable in ``windows``.

    Args:
        weights: the probe's (D,).
        windows: (N, 2, H, W), LQ and HQ of every image, N at least G.
        counted: (N, 1, H, W), how much each pixel counts in the sum of an image's squared errors.
        distances: from a gradient (D,) to its distance from the target, one a persona.
        form: of the derivative.
        together: all personas in one batch, see :func:`batched_gradients`; of the exact form alone.
    """
    groups = len(distances)
    if together and groups > 1 and form == "exact":
        gradients = batched_gradients(
            network, weights=weights, windows=windows, counted=counted, groups=groups
        )
        pairs = zip(distances, gradients, strict=True)
        return torch.stack([distance(gradient) for distance, gradient in pairs])
    match = exact_match if form == "exact" else finite_difference_match
    found = []
    for group, distance in enumerate(distances):
        mine, counts = windows[group::groups], counted[group::groups]
        loss = functools.partial(_loss, network, LAYOUT, counts / len(counts))
        found.append(
            match(loss, weights=weights, lq=mine[:, :1], hq=mine[:, 1:], distance=distance)
        )
    return torch.stack(found)


def batched_gradients(
    network: Network, *, weights: Tensor, windows: Tensor, counted: Tensor, groups: int
) -> Tensor:
    """Gradients (G, D) of each persona's images, by one batched backward pass in place of G.

    Many small convolutions leave a GPU waiting; on a CPU the batch takes a tenth to a quarter
    longer than one persona after the other. Personas with an image less get an empty one, which
    counts nowhere.
    """
    images = [len(windows[group::groups]) for group in range(groups)]
    each = grad(functools.partial(_batchable, network))
    gradients: Tensor = vmap(each, in_dims=(None, 0, 0, 0))(
        weights.detach(),
        _dealt(windows, groups),
        _dealt(counted, groups),
        torch.tensor(images, dtype=counted.dtype, device=counted.device),
    )
    return gradients


def _dealt(rows: Tensor, groups: int) -> Tensor:
    """(N, ...) as (G, n, ...), with zeros where a persona has a row less."""
    lacking = -len(rows) % groups
    padded = torch.cat([rows, rows.new_zeros(lacking, *rows.shape[1:])])
    return padded.view(-1, groups, *rows.shape[1:]).transpose(0, 1)


def _batchable(
    network: Network, theta: Tensor, windows: Tensor, counted: Tensor, images: Tensor
) -> Tensor:
    layout = torch.contiguous_format  # vmap knows no other
    return _loss(network, layout, counted / images, theta, windows[:, :1], windows[:, 1:])


def _loss(
    network: Network,
    layout: torch.memory_format,
    counted: Tensor,
    theta: Tensor,
    lq: Tensor,
    hq: Tensor,
) -> Tensor:
    """Squared error () of a network's answers to windows, each pixel as often as ``counted``."""
    answer = apply_network(network, theta, lq, layout=layout)
    return (counted * (answer - hq).square()).sum()
