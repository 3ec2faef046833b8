"""Distances between a distilled gradient and the one the hospitals answered with."""

import torch
from torch import Tensor


def relative_squared_distance(distilled: Tensor, target: Tensor) -> Tensor:
    """|distilled - target|^2 / |target|^2 of two flat gradients (D,): 0 where they agree.

    Whole-gradient L2, which keeps the norm that a cosine forgets. Dividing by the target's norm
    lets probes of different depth count alike.
    """
    scale = target.square().sum().clamp_min(torch.finfo(target.dtype).tiny)
    return (distilled - target).square().sum() / scale
