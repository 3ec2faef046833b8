import numpy as np
import pytest
import torch

from aggregator.attacks.scene import Scene
from shared.images import psnr_db, ssim
from shared.similarity import Likeness, likeness, to_patients


def images(count: int, *, seed: int = 0) -> torch.Tensor:
    """Smooth random images (count, 1, 32, 32) with air around them."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.nn.functional.interpolate(
        torch.rand(count, 1, 4, 4, generator=generator), size=(16, 16), mode="bicubic"
    )
    return torch.nn.functional.pad(inner.clamp(0, 1), (8, 8, 8, 8))


def test_figures_are_those_of_single_images_where_nothing_has_to_move() -> None:
    one = images(1)
    other = (one + 0.1 * images(1, seed=1)).clamp(0, 1)
    found = likeness(one, other)
    first, second = one[0, 0].numpy(), other[0, 0].numpy()
    assert found.psnr_db.item() == pytest.approx(psnr_db(first, second), abs=1e-3)
    assert found.ssim.item() == pytest.approx(ssim(first, second), abs=1e-5)
    correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    assert found.ncc.item() == pytest.approx(correlation, abs=1e-5)


@pytest.mark.parametrize("move", [(0, 0), (3, -5), (-8, 8)])
def test_a_moved_image_is_found_again(move: tuple[int, int]) -> None:
    one = images(2)
    found = likeness(one.roll(move, dims=(-2, -1)), one)
    assert (found.ssim.diag() > 0.9999).all()
    assert (found.ncc.diag() > 0.9999).all()
    assert (found.psnr_db.diag() > 60).all()
    assert found.ncc[0, 1] < 0.99


def test_beyond_the_reach_nothing_is_found() -> None:
    one = images(1)
    assert likeness(one.roll(12, dims=-1), one).ncc.item() < 0.9


def test_a_patient_is_as_near_as_the_nearest_slice(scene: Scene) -> None:
    patients = scene.participants[:3]
    found = to_patients(patients[1], patients)
    assert found.ssim.shape == (2, 3)
    assert (found.ssim[:, 1] > 0.9999).all()
    assert found.best().ssim.shape == (3,)
    each = likeness(patients[1][:1], patients[1])
    assert found.ssim[0, 1] == each.ssim.max()


def test_figures_are_chosen_joined_and_compared() -> None:
    low, high = (Likeness(*(torch.tensor([v, 2 * v]) for _ in range(3))) for v in (1.0, 3.0))
    assert Likeness.best_of([low, high]).ssim.tolist() == [3.0, 6.0]
    assert Likeness.joined([low, high]).ncc.tolist() == [1.0, 2.0, 3.0, 6.0]
    assert high.at([1]).psnr_db.tolist() == [6.0]
    known = torch.tensor([True, False])
    assert Likeness.best_of([low, high.where(known)]).ssim.tolist() == [3.0, 2.0]
