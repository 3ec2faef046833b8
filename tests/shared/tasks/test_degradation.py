import pytest
import torch

from shared.tasks.degradation import degrade, level_of, observe, parts
from shared.tasks.settings import (
    CtDenoise,
    CtKernel,
    CtSr,
    MrDenoise,
    MrSr,
    MrUndersampled,
    MultiTask,
    SingleTask,
)

KERNEL = CtKernel(transfer=(1.0, 1.2, 1.6, 2.0), noise_hu=(5.0, 10.0, 20.0, 20.0))
TASKS: list[SingleTask] = [
    CtDenoise(size_px=32, angles=60, bins=48, pixel_mm=9.0),
    CtSr(size_px=32),
    CtSr(size_px=32, factor=4, direction="slice"),
    KERNEL.model_copy(update={"size_px": 32}),
    MrDenoise(size_px=32),
    MrSr(size_px=32),
    MrSr(size_px=32, factor=2, sigma=0.02),
    MrUndersampled(size_px=32),
    MrUndersampled(size_px=32, sigma=0.02),
]
every_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


def body(count: int = 2, size: int = 32) -> torch.Tensor:
    axis = torch.linspace(-1, 1, size)
    inside = axis[:, None] ** 2 / 0.7 + axis**2 / 0.4 < 1
    return (0.1 + 0.5 * inside.float())[None, None].repeat(count, 1, 1, 1)


@every_task
def test_lq_lies_on_the_grid_of_hq_and_follows_its_seed(task: SingleTask) -> None:
    first = degrade(task, body(), seed=4)
    assert first.shape == body().shape
    assert first.dtype == torch.float32
    assert torch.equal(first, degrade(task, body(), seed=4))
    random = task.name != "mr-sr" or (isinstance(task, MrSr) and task.sigma > 0)
    assert torch.equal(first, degrade(task, body(), seed=5)) is not random
    assert 0.001 < float((first - body()).square().mean().sqrt()) < 0.5


@every_task
def test_a_level_serves_any_number_of_draws_and_images_that_have_moved(task: SingleTask) -> None:
    level = level_of(task, body())
    generator = torch.Generator().manual_seed(7)
    moved = body() + 0.05
    first = observe(task, moved, level, generator=generator)
    second = observe(task, moved, level, generator=generator)
    if not isinstance(
        task, CtDenoise
    ):  # its level is the dose, that of the images it was found for
        assert torch.equal(first, degrade(task, moved, seed=7))
    if not (isinstance(task, MrSr) and task.sigma == 0):
        assert not torch.equal(first, second)


@pytest.mark.parametrize("task", TASKS[1:], ids=lambda task: task.name)
def test_the_derivative_is_that_of_finite_differences(task: SingleTask) -> None:
    hq = body(1, 12).double() + 0.1 * torch.rand(1, 1, 12, 12, dtype=torch.float64)
    hq.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda image: degrade(task, image, seed=3), (hq,))


@every_task
def test_derivatives_of_an_empty_image_are_finite(task: SingleTask) -> None:
    hq = torch.zeros(1, 1, 32, 32, requires_grad=True)
    loss = (degrade(task, hq, seed=1) - 0.1).square().mean()
    (first,) = torch.autograd.grad(loss, hq, create_graph=True)
    (second,) = torch.autograd.grad((first * torch.randn_like(first)).sum(), hq, allow_unused=True)
    assert bool(first.isfinite().all())
    assert second is None or bool(second.isfinite().all())


@every_task
def test_a_batch_is_degraded_without_mixing_its_images(task: SingleTask) -> None:
    hq = body().requires_grad_(True)
    (gradient,) = torch.autograd.grad(degrade(task, hq, seed=2)[0].sum(), hq)
    assert float(gradient[0].abs().sum()) > 0
    assert float(gradient[1].abs().sum()) == 0


def test_the_parts_of_a_task_are_itself_or_those_of_a_multi_task() -> None:
    single = (MrDenoise(), MrSr())
    assert parts(single[0]) == (single[0],)
    assert parts(MultiTask(parts=single)) == single
