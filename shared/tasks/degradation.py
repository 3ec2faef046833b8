"""From high to low quality: one entry to every task's physics.

A degradation has two steps, so that many draws and many optimisation steps can share the first:
``level_of`` finds what every draw needs (a dose per slice, a filter on the grid), ``observe`` makes
one noisy, blurred or undersampled version. Both are differentiable in the images where the physics
is. Noise is drawn on the generator's device, so a CPU generator gives every device the same noise.
"""

from typing import Any, assert_never

import torch
from torch import Tensor

from shared.tasks import ct_denoise, ct_kernel, ct_sr, mr_denoise, mr_sr, mr_undersampled
from shared.tasks.settings import (
    CtDenoise,
    CtKernel,
    CtSr,
    MrDenoise,
    MrSr,
    MrUndersampled,
    MultiTask,
    SingleTask,
    Task,
)

Level = Any
"""What a task's draws share, found once a batch; opaque to callers."""


def parts(task: Task) -> tuple[SingleTask, ...]:
    """The single tasks of ``task``: itself, or those of a multi-task."""
    return task.parts if isinstance(task, MultiTask) else (task,)


def level_of(task: SingleTask, hq: Tensor) -> Level:
    """What draws of ``hq`` (N, 1, S, S), window units, share: its noise level, or the operator.

    Only the noise level of ``ct-denoise`` depends on the values of ``hq``; an operator depends on
    size, device and type. ``None`` where there is nothing to share.
    """
    match task:
        case CtDenoise():
            return ct_denoise.dose(task, hq)
        case CtSr():
            return ct_sr.sampling(task, hq)
        case CtKernel():
            return ct_kernel.response(task, hq)
        case MrSr():
            return mr_sr.truncation(task, hq)
        case MrDenoise() | MrUndersampled():
            return None
        case _:
            assert_never(task)


def observe(task: SingleTask, hq: Tensor, level: Level, *, generator: torch.Generator) -> Tensor:
    """One low-quality version (N, 1, S, S) of ``hq``, on its grid; differentiable in ``hq``."""
    match task:
        case CtDenoise():
            return hq + ct_denoise.draw(task, level, generator=generator)
        case CtSr():
            return ct_sr.observe(task, hq, level, generator=generator)
        case CtKernel():
            return ct_kernel.observe(task, hq, level, generator=generator)
        case MrDenoise():
            return mr_denoise.observe(task, hq, generator=generator)
        case MrSr():
            return mr_sr.observe(task, hq, level, generator=generator)
        case MrUndersampled():
            return mr_undersampled.observe(task, hq, generator=generator)
        case _:
            assert_never(task)


def degrade(task: SingleTask, hq: Tensor, *, seed: int) -> Tensor:
    """The low-quality version of ``hq`` that belongs to ``seed``: (N, 1, S, S)."""
    generator = torch.Generator().manual_seed(seed)
    return observe(task, hq, level_of(task, hq), generator=generator)
