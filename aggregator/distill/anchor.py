"""The anchor: a network at the hospitals' optimum, whose outputs become the distilled targets.

At the raw data's optimum the raw gradient vanishes, and pairs whose target is the anchor's own
output have gradient zero there: gradient alignment is met exactly. The way to it is federated
averaging (McMahan et al., AISTATS 2017) of accumulated gradients of E local steps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def averaged(values: Sequence[Tensor], *, patients: Sequence[int]) -> Tensor:
    """Mean of the sites' (K, D) answers, weighted by their (bucketed) numbers of patients.

    A site counts at most twice the median site: a large claim buys no majority. Raises
    ``ValueError`` on no answers.
    """
    if not values:
        raise ValueError("nothing to average")
    counts = torch.tensor([float(count) for count in patients])
    shares = counts.clamp(max=2 * float(counts.median()))
    shares = shares / shares.sum()
    return torch.stack([share * value for share, value in zip(shares, values, strict=True)]).sum(0)


def descend(weights: Tensor, descent: Tensor) -> Tensor:
    """The anchor after a round: ``weights`` (D,) minus the mean descent (D,)."""
    return weights - descent
