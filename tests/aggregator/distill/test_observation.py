import torch

from aggregator.distill.observation import Observer
from shared.tasks.ct_denoise import dose
from shared.tasks.settings import CtDenoise, CtSr, MrDenoise, MultiTask

TASK = CtDenoise(size_px=32, angles=60, bins=48, pixel_mm=9.0)
SR = CtSr(size_px=32, factor=2, noise_hu=0)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_noise_is_kept_until_it_is_renewed_while_the_images_move() -> None:
    images = torch.rand(2, 1, 32, 32)
    observer = Observer(TASK, images, generator=generator())
    first = observer.observe(images) - images
    moved = (images + 0.01).requires_grad_(True)
    again = observer.observe(moved)
    torch.testing.assert_close((again - moved).detach(), first, atol=1e-5, rtol=0)
    (slope,) = torch.autograd.grad(again.sum(), moved)
    assert torch.equal(slope, torch.ones_like(slope))
    observer.renew()
    assert not torch.allclose(observer.observe(images) - images, first, atol=1e-3)


def test_the_noise_is_of_the_tasks_own_strength() -> None:
    images = torch.full((64, 1, 32, 32), 0.5)
    observer = Observer(TASK, images, generator=generator())
    noise = observer.observe(images) - images
    from shared.tasks.ct_denoise import draw

    other = torch.Generator().manual_seed(5)
    expected = draw(TASK, dose(TASK, images), generator=other)
    assert abs(float(noise.std() / expected.std()) - 1) < 0.03


def test_other_tasks_are_observed_anew_every_time() -> None:
    images = torch.rand(2, 1, 32, 32)
    observer = Observer(MrDenoise(size_px=32), images, generator=generator())
    assert not torch.equal(observer.observe(images), observer.observe(images))


def test_several_tasks_are_dealt_evenly_over_the_images() -> None:
    images = torch.rand(6, 1, 32, 32)
    both = Observer(MultiTask(parts=(TASK, SR)), images, generator=generator())
    blurred = Observer(SR, images, generator=generator()).observe(images)
    seen = set()
    for _ in range(20):
        observed = both.observe(images)
        sharp = [not torch.equal(observed[n], blurred[n]) for n in range(6)]
        assert sum(sharp) == 3
        seen.add(tuple(sharp))
    assert len(seen) > 5
