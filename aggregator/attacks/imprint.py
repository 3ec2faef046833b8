"""Weights that imprint patches of single patients on a gradient: what a site must not answer.

The trap weights of Fowl et al. (ICLR 2022, "Robbing the Fed") as far as a convolutional network can
hold them. Three layers shift the image by a pixel each, so that the taps of a filter of the fourth
see a patch of 9 x 9; its filters all measure the same brightness, each above another threshold. Two
successive filters' gradients differ by the patches whose brightness lies between their thresholds:
where that is one place of one patient, by a copy of what is there.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from shared.architectures import Residual
from shared.families import layers

NETWORK = Residual(depth=5, width=16)
_SHIFTS = tuple(itertools.product((-3, 0, 3), repeat=2))
"""Of the nine channels that carry the image, in pixels."""
_PAD = 4
_LAST_GAIN = 0.01


def imprint(thresholds: Tensor) -> Tensor:
    """Weights (D,) of :data:`NETWORK` whose fourth layer is a ladder of 16 ``thresholds``."""
    width, parts = NETWORK.width, list[Tensor]()
    for step in range(3):
        kernel = torch.zeros(width, 1 if step == 0 else width, 3, 3)
        for channel, shift in enumerate(_SHIFTS):
            row, column = ((by > 0) - (by < 0) for by in shift)
            kernel[channel, 0 if step == 0 else channel, 1 + row, 1 + column] = 1
        parts += [kernel.flatten(), torch.zeros(width)]
    measure = torch.zeros(width, width, 3, 3)
    measure[:, _SHIFTS.index((0, 0))] = 1 / 9
    last = torch.zeros(1, width, 3, 3)
    last[0, :, 1, 1] = _LAST_GAIN
    return torch.cat([*parts, measure.flatten(), -thresholds, last.flatten(), torch.zeros(1)])


def imprinted(gradient: Tensor) -> Tensor:
    """What successive filters of a gradient (D,) at such weights differ by, (16, 81)."""
    before, width = sum(layer.parameters for layer in layers(NETWORK)[:3]), NETWORK.width
    kernel = gradient[before : before + width * width * 9].view(width, width, 9)
    seen = kernel[:, : len(_SHIFTS)].flatten(1)
    return seen - torch.cat([seen[1:], torch.zeros_like(seen[:1])])


def patches(images: Tensor) -> Tensor:
    """Every 9 x 9 patch of (n, 1, S, S), its pixels in the order of :func:`imprinted`: (M, 81)."""
    size, padded = images.shape[-1], functional.pad(images, (_PAD,) * 4)
    corners = [
        (_PAD + shift[0] + row, _PAD + shift[1] + column)
        for shift in _SHIFTS
        for row, column in itertools.product((-1, 0, 1), repeat=2)
    ]
    windows = [padded[:, 0, top : top + size, left : left + size] for top, left in corners]
    return torch.stack(windows, dim=-1).flatten(0, 2)


def likeness(seen: Tensor, patients: Sequence[Tensor]) -> list[tuple[float, float]]:
    """Of each row of (N, 81) that shows anything: whom it is like, and who comes next.

    The largest |correlation| with a patch of a patient, over all of that patient's (n, 1, S, S):
    the largest and the second largest of the patients.
    """
    rows = seen[seen.norm(dim=1) > 1e-12]
    best = torch.stack([_correlations(rows, patches(patient)).amax(dim=1) for patient in patients])
    first, second = best.sort(dim=0, descending=True).values[:2].tolist()
    return list(zip(first, second, strict=True))


def _correlations(rows: Tensor, others: Tensor) -> Tensor:
    ours, theirs = (one - one.mean(dim=1, keepdim=True) for one in (rows, others))
    norms = ours.norm(dim=1, keepdim=True) * theirs.norm(dim=1)
    correlations: Tensor = (ours @ theirs.T).abs() / norms.clamp_min(1e-9)
    return correlations
