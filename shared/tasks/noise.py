"""White Gaussian noise from a seeded generator, wherever the images lie."""

import torch
from torch import Tensor


def white(like: Tensor, *, generator: torch.Generator) -> Tensor:
    """Independent standard normal values of the shape, type and device of ``like``.

    Drawn in float32 on the generator's own device and then moved, so that a CPU generator gives a
    GPU the values it gives the CPU.
    """
    drawn = torch.randn(like.shape, generator=generator, device=generator.device)
    return drawn.to(like)
