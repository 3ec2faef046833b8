"""From high to low quality: one entry to every task's physics.

A degradation has two steps, so that many draws and many optimisation steps can share the first:
``level_of`` finds what the noise depends on (a dose per slice, say), ``observe`` makes one noisy,
blurred or undersampled version. Both are differentiable in the images where the physics is.
"""

from typing import Any

import torch
from torch import Tensor

from shared.tasks import ct_denoise
from shared.tasks.settings import CtDenoise, MultiTask, SingleTask, Task

Level = Any
"""What a task's noise depends on, found once a batch; opaque to callers."""


def parts(task: Task) -> tuple[SingleTask, ...]:
    """The single tasks of ``task``: itself, or those of a multi-task."""
    return task.parts if isinstance(task, MultiTask) else (task,)


def level_of(task: SingleTask, hq: Tensor) -> Level:
    """What the noise of ``hq`` (N, 1, S, S), window units, depends on."""
    if isinstance(task, CtDenoise):
        return ct_denoise.dose(task, hq)
    raise NotImplementedError(task.name)


def observe(task: SingleTask, hq: Tensor, level: Level, *, generator: torch.Generator) -> Tensor:
    """One low-quality version (N, 1, S, S) of ``hq``, on its grid; differentiable in ``hq``."""
    if isinstance(task, CtDenoise):
        return hq + ct_denoise.draw(task, level, generator=generator)
    raise NotImplementedError(task.name)


def degrade(task: SingleTask, hq: Tensor, *, seed: int) -> Tensor:
    """The low-quality version of ``hq`` that belongs to ``seed``: (N, 1, S, S)."""
    generator = torch.Generator().manual_seed(seed)
    return observe(task, hq, level_of(task, hq), generator=generator)
