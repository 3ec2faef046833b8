"""A site's veto: are images about to be published more like its patients than chance makes them?

Of every image the nearest slice is looked for, by SSIM and by NCC (:mod:`shared.similarity`): among
the patients whose gradients it was matched to, and among those kept back, to whom it owes nothing.

1. An image nearer to a used patient than 99 in 100 slices of the kept-back ones are is objected to
   by its number, if it has come nearer to the used ones than what it replaces, by ``IMAGE_BAR``
   more than to those kept back. What is near by chance, and was so before, is no copy.
2. The images' likeness to used patients over that to kept-back ones, means over the images, in
   units of the same ratio of what they replace, must not exceed the site's bound.

What the aggregator learns is the verdict, those numbers and the two ratios in steps of 0.05.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.judging import MAX_RATIO, RATIO_STEP, in_steps
from shared.messages import FloatArray
from shared.similarity import Likeness, to_patients

PERCENTILE = 99
MOST_STRANGERS = 64
"""Slices of kept-back patients that say how near a stranger may come: each is held against all."""

IMAGE_BAR = 1.12
"""Growth of an image's likeness to used patients over that to kept-back ones.

Measured on three hospitals of real CT: of 120 comparisons of warped priors none is named by it and
the percentile together, of eight slices of used patients, warped and toned, all are.
"""

_LEAST_LIKENESS = 1e-3


@dataclass(frozen=True)
class Verdict:
    """What a site says of a set of images; fields as in ``VetoHeader``."""

    passed: bool
    ratio_ssim: float
    ratio_ncc: float
    too_alike: tuple[int, ...]


def compared(
    candidates: FloatArray,
    replaced: FloatArray,
    *,
    used: Sequence[Tensor],
    kept: Sequence[Tensor],
    at_most: float,
) -> Verdict:
    """The verdict on ``candidates`` (N, 1, S, S), made in place of ``replaced``, of that shape.

    ``used`` and ``kept`` are patients (n_i, 1 or 2, S, S), HQ first; ``at_most`` bounds the ratio.
    """
    near, far = ([slices[:, :1] for slices in patients] for patients in (used, kept))
    strangers = to_patients(_spread(torch.cat(far), MOST_STRANGERS), near)
    sides = []
    for images in (candidates, replaced):
        shown = torch.from_numpy(np.array(images, dtype=np.float32)).to(near[0]).clamp(0, 1)
        sides.append((to_patients(shown, near), to_patients(shown, far)))
    (own_near, own_far), (null_near, null_far) = sides
    ratios, too_alike = {}, np.zeros(len(candidates), bool)
    for by in ("ssim", "ncc"):
        limit = np.percentile(_nearest(strangers, by), PERCENTILE)
        towards = [
            _held(own, by) / _held(null, by)
            for own, null in ((own_near, null_near), (own_far, null_far))
        ]
        too_alike |= (_nearest(own_near, by) > limit) & (towards[0] > IMAGE_BAR * towards[1])
        ratios[by] = _ratio(own_near, own_far, by) / _ratio(null_near, null_far, by)
    return Verdict(
        passed=not too_alike.any() and max(ratios.values()) <= at_most,
        ratio_ssim=_coarse(ratios["ssim"]),
        ratio_ncc=_coarse(ratios["ncc"]),
        too_alike=tuple(int(number) for number in too_alike.nonzero()[0]),
    )


def _nearest(likeness: Likeness, by: str) -> NDArray[np.float64]:
    values: Tensor = getattr(likeness, by)
    found: NDArray[np.float64] = values.amax(dim=1).double().cpu().numpy()
    return found


def _held(likeness: Likeness, by: str) -> NDArray[np.float64]:
    return np.maximum(_nearest(likeness, by), _LEAST_LIKENESS)


def _ratio(near: Likeness, far: Likeness, by: str) -> float:
    means = [max(float(_nearest(one, by).mean()), _LEAST_LIKENESS) for one in (near, far)]
    return means[0] / means[1]


def _spread(slices: Tensor, at_most: int) -> Tensor:
    """Evenly spaced ones of (n, 1, S, S)."""
    if len(slices) <= at_most:
        return slices
    return slices[torch.linspace(0, len(slices) - 1, at_most).round().long()]


def _coarse(ratio: float) -> float:
    return in_steps(min(max(ratio, 0.0), MAX_RATIO), RATIO_STEP)
