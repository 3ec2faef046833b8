"""Degraded versions of the set, step after step of the matching, at little cost.

What costs most of a low-dose slice is its noise, which depends on the dose alone. The dose is that
of the images when the steps begin (a hundred small ones hardly move it), and a draw serves while
the steps go over an image tile by tile: no pixel's noise is ever used twice.
"""

import torch
from torch import Tensor

from shared.tasks.degradation import level_of, observe, parts
from shared.tasks.settings import CtDenoise, SingleTask, Task


class Observer:
    """Observes images (N, 1, S, S) that stay near those it was made with."""

    def __init__(self, task: Task, images: Tensor, *, generator: torch.Generator) -> None:
        self._parts = parts(task)
        self._levels = [level_of(part, images) for part in self._parts]
        self._generator = generator
        self._noise: dict[int, Tensor] = {}

    def renew(self) -> None:
        """Forgets the noise: the next observation draws afresh."""
        self._noise.clear()

    def observe(self, images: Tensor) -> Tensor:
        """One low-quality version (N, 1, S, S) of every image; of several tasks each gets one.

        The hospitals' gradient is the mean over the tasks, so the set's has to be one too: tasks
        are dealt evenly over the images, in a new order at every call.
        """
        if len(self._parts) == 1:
            return self._one(0, self._parts[0], images)
        versions = [self._one(number, part, images) for number, part in enumerate(self._parts)]
        order = torch.randperm(len(images), generator=self._generator) % len(versions)
        device = images.device
        return torch.stack(versions)[order.to(device), torch.arange(len(images), device=device)]

    def _one(self, number: int, part: SingleTask, images: Tensor) -> Tensor:
        level, generator = self._levels[number], self._generator
        if not isinstance(part, CtDenoise):
            return observe(part, images, level, generator=generator)
        if number not in self._noise:
            fixed = images.detach()
            self._noise[number] = observe(part, fixed, level, generator=generator) - fixed
        return images + self._noise[number]
