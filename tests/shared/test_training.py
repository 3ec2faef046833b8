import pytest
import torch

from shared.architectures import Residual
from shared.networks import apply_network, initial_weights
from shared.tasks.degradation import degrade
from shared.tasks.settings import CtDenoise, MrDenoise, MrSr, MrUndersampled, MultiTask, Task
from shared.training import (
    Score,
    dihedral,
    enhance,
    enhance_symmetric,
    evaluate,
    fit_pairs,
    noisy_pool,
    sample_batch,
    turned_back,
)

TASK = CtDenoise(size_px=32, angles=60, bins=48, pixel_mm=9.0)
SMALL = Residual(depth=2, width=4)
CPU = torch.device("cpu")


def test_the_eight_symmetries_are_distinct_and_keep_every_value() -> None:
    image = torch.arange(9.0).view(1, 3, 3)
    turned = [dihedral(image, turn) for turn in range(8)]
    assert len({tuple(one.flatten().tolist()) for one in turned}) == 8
    assert all(torch.equal(one.flatten().sort().values, image.flatten()) for one in turned)


def test_crops_of_a_pair_stay_in_register_when_targets_repeat() -> None:
    hq = torch.rand(3, 1, 16, 16)
    lq = torch.cat([hq + 1, hq + 2])  # draw-major: pair m belongs to slice m % 3
    inputs, targets = sample_batch(
        lq, hq, batch=32, crop_px=5, generator=torch.Generator().manual_seed(0)
    )
    offsets = (inputs - targets).round()
    torch.testing.assert_close(inputs - targets, offsets, atol=1e-5, rtol=0)
    assert set(offsets.flatten().tolist()) == {1.0, 2.0}


def test_training_repeats_to_the_bit_and_follows_its_seed() -> None:
    lq, hq = torch.rand(2, 4, 1, 32, 32)
    first, second, other = (
        fit_pairs(lq=lq, hq=hq, network=SMALL, steps=5, seed=seed, device=CPU) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_training_learns_a_constant_offset() -> None:
    hq = torch.rand(6, 1, 32, 32)
    weights = fit_pairs(lq=hq + 0.2, hq=hq, network=SMALL, steps=400, seed=0, device=CPU)
    error = (enhance(SMALL, weights, hq + 0.2) - hq)[..., 2:-2, 2:-2]
    assert float(error.square().mean()) < 0.04 / 20


def test_checkpoints_are_points_of_one_trajectory() -> None:
    lq, hq = torch.rand(2, 4, 1, 32, 32)
    kept = fit_pairs(
        lq=lq, hq=hq, network=SMALL, steps=6, seed=3, device=CPU, checkpoints=(0, 2, 6)
    )
    assert torch.equal(kept[0], initial_weights(SMALL, seed=3))
    assert torch.equal(kept[2], fit_pairs(lq=lq, hq=hq, network=SMALL, steps=6, seed=3, device=CPU))
    assert not torch.equal(kept[1], kept[2])


def test_a_training_within_directions_leaves_their_span_nowhere_and_learns() -> None:
    hq = torch.rand(6, 1, 32, 32)
    start = initial_weights(SMALL, seed=0)
    basis = torch.linalg.qr(torch.randn(start.numel(), 20)).Q.T
    kept = fit_pairs(
        lq=hq + 0.2,
        hq=hq,
        network=SMALL,
        steps=100,
        seed=0,
        device=CPU,
        start=start,
        within=basis,
        checkpoints=(0, 100),
    )
    assert torch.equal(kept[0], start)
    moved = kept[1] - start
    torch.testing.assert_close(moved @ basis.T @ basis, moved, atol=1e-5, rtol=0)
    before, after = (
        float((enhance(SMALL, weights, hq + 0.2) - hq).square().mean()) for weights in kept
    )
    assert after < 0.9 * before


def test_within_all_directions_the_first_step_is_as_long_as_without() -> None:
    lq, hq = torch.rand(2, 4, 1, 32, 32)
    start = initial_weights(SMALL, seed=0)
    plain, within = (
        fit_pairs(
            lq=lq, hq=hq, network=SMALL, steps=1, seed=0, device=CPU, start=start, within=basis
        )
        - start
        for basis in (None, torch.linalg.qr(torch.randn(start.numel(), 10)).Q.T)
    )
    # Adam's first step moves every number by the rate.
    assert float(within.norm()) == pytest.approx(float(plain.norm()), rel=0.05)


def test_a_pool_holds_fresh_noise_of_every_slice_draw_by_draw() -> None:
    hq = torch.rand(3, 1, 32, 32)
    pool = noisy_pool(TASK, hq, draws=4, seed=1)
    assert pool.shape == (12, 1, 32, 32)
    noise = pool - hq.repeat(4, 1, 1, 1)
    assert abs(float(noise.mean())) < 0.1 * float(noise.std())
    assert not torch.equal(noise[0], noise[3])
    assert torch.equal(pool, noisy_pool(TASK, hq, draws=4, seed=1))


def test_scores_are_patient_means_of_the_untouched_input_and_of_a_network() -> None:
    patients = [torch.rand(2, 1, 32, 32), torch.rand(1, 1, 32, 32)]
    untouched = evaluate(
        weights=None, network=SMALL, patients=patients, task=TASK, seed=0, device=CPU
    )
    identity = torch.zeros_like(initial_weights(SMALL, seed=0))
    assert torch.equal(apply_network(SMALL, identity, patients[0]), patients[0])
    same = evaluate(
        weights=identity, network=SMALL, patients=patients, task=TASK, seed=0, device=CPU
    )
    assert len(untouched.psnr_db) == len(untouched.ssim) == 2
    assert same.psnr_db == pytest.approx(untouched.psnr_db)


@pytest.mark.parametrize("turn", range(8))
def test_a_symmetry_is_turned_back_to_the_bit(turn: int) -> None:
    image = torch.rand(2, 1, 5, 5)
    assert torch.equal(turned_back(dihedral(image, turn), turn), image)
    assert torch.equal(dihedral(turned_back(image, turn), turn), image)


@pytest.mark.parametrize("turn", range(8))
def test_the_self_ensemble_turns_with_its_input(turn: int) -> None:
    weights = initial_weights(SMALL, seed=0) * 3
    lq = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(
        enhance_symmetric(SMALL, weights, dihedral(lq, turn)),
        dihedral(enhance_symmetric(SMALL, weights, lq), turn),
    )
    if turn:
        plain = enhance(SMALL, weights, dihedral(lq, turn))
        turned = dihedral(enhance(SMALL, weights, lq), turn)
        assert not torch.allclose(plain, turned, atol=1e-3), "the network alone does not"


def test_of_a_symmetric_network_the_self_ensemble_is_the_network() -> None:
    network = Residual(depth=2, width=4)
    cross = torch.tensor([[0.1, 0.3, 0.1], [0.3, 0.5, 0.3], [0.1, 0.3, 0.1]]).flatten()
    weights = torch.cat([cross.repeat(4), torch.full((4,), 0.1), cross.repeat(4), torch.zeros(1)])
    lq = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(
        enhance_symmetric(network, weights, lq), enhance(network, weights, lq)
    )


MULTI = MultiTask(
    parts=(MrSr(size_px=32), MrDenoise(size_px=32), MrUndersampled(size_px=32, sigma=0.01))
)


@pytest.mark.parametrize(("draws", "given"), [(1, 3), (2, 3), (3, 3), (4, 6), (6, 6)])
def test_a_pool_of_a_multi_task_takes_its_parts_in_turn_and_equally_often(
    draws: int, given: int
) -> None:
    # More than one chunk; dark, so that the square of the noise stands out.
    hq = 0.2 * torch.rand(18, 1, 32, 32)
    pool = noisy_pool(MULTI, hq, draws=draws, seed=1).unflatten(0, (-1, 18))
    assert pool.shape[0] == given
    truncated = degrade(MULTI.parts[0], hq, seed=0)  # without noise: the same at every draw
    for number, drawn in enumerate(pool):
        of_first_part = torch.allclose(drawn, truncated, atol=1e-5)
        assert of_first_part is (number % 3 == 0)
    if given == 6:
        assert not torch.equal(pool[1], pool[4])
    # Rician noise turns up at the second part's turn alone: 2 sigma^2 of mean square.
    excess = (pool.square() - hq.square()).mean(dim=(1, 2, 3, 4))
    assert float(excess[1]) == pytest.approx(2 * 0.06**2, rel=0.1)


def test_a_multi_task_scores_the_mean_over_its_parts() -> None:
    patients = [torch.rand(2, 1, 32, 32), torch.rand(1, 1, 32, 32)]

    def scores(task: Task) -> Score:
        return evaluate(
            weights=None, network=SMALL, patients=patients, task=task, seed=3, device=CPU
        )

    alone = [scores(part) for part in MULTI.parts]
    together = scores(MULTI)
    for patient in range(2):
        psnr = sum(score.psnr_db[patient] for score in alone) / 3
        ssim = sum(score.ssim[patient] for score in alone) / 3
        assert together.psnr_db[patient] == pytest.approx(psnr)
        assert together.ssim[patient] == pytest.approx(ssim)
