"""The anchor: a network at the hospitals' optimum, whose outputs become the distilled targets.

At the raw data's optimum the raw gradient vanishes, and pairs whose target is the anchor's own
output have gradient zero there: gradient alignment is met exactly. The way to it is federated
averaging (McMahan et al., AISTATS 2017) of accumulated gradients of E local steps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from shared.gradients import clip

CAPPED_FROM_SITES, TRIMMED_FROM_SITES = 3, 5
"""Sites from which on the median length says what is too long; and a coordinate's extremes are left
out. Of fewer, too little would be known, or left."""


def averaged(values: Sequence[Tensor], *, patients: Sequence[int]) -> Tensor:
    """Mean of the sites' (K, D) answers, weighted by their (bucketed) numbers of patients.

    A site counts at most twice the median site: a large claim buys no majority. From three sites on
    no answer is longer than the median one: what is longer is shortened to it. From five on the
    mean is trimmed (Yin et al., ICML 2018): at each coordinate a fifth of the sites at either end
    is left out, so that a site that answers wildly moves nothing beyond what the others span.
    Raises ``ValueError`` on no answers.
    """
    if not values:
        raise ValueError("nothing to average")
    counts = torch.tensor([float(count) for count in patients])
    shares = counts.clamp(max=2 * float(counts.median()))
    shares = shares / shares.sum()
    stack, cut = torch.stack(list(values)), len(values) // TRIMMED_FROM_SITES
    if len(values) >= CAPPED_FROM_SITES:
        lengths = stack.flatten(1).norm(dim=1)
        shortened = (lengths.median() / lengths.clamp_min(1e-30)).clamp(max=1.0)
        stack = stack * shortened[:, None, None]
    place = stack.argsort(dim=0, stable=True).argsort(dim=0)
    kept = (place >= cut) & (place < len(values) - cut)
    weights = shares.to(stack)[:, None, None] * kept
    return (weights * stack).sum(0) / weights.sum(0)


def balanced(blocks: Sequence[Tensor]) -> list[Tensor]:
    """Of the sites' blocks (P_i, K, D), a patient each, no more than twice the median site's.

    Inventing patients buys no majority among them.
    """
    counts = torch.tensor([float(len(each)) for each in blocks])
    most = int(2 * float(counts.median()))
    return [each[:most] for each in blocks]


def descend(weights: Tensor, descent: Tensor, *, at_most: float) -> Tensor:
    """The anchor after a round: ``weights`` (D,) minus the mean descent (D,).

    It moves by ``at_most``, L2 norm: sites take no weights that are farther from the last ones, and
    a trimmed mean of descents can be a little longer than each of them.
    """
    return weights - clip(descent, norm=at_most)
