import hashlib

import numpy as np
import pytest
import torch

from shared.architectures import Residual
from shared.contract import Anchor, Probes, RunContract
from shared.gradients import (
    clip,
    cohort_gradients,
    local_descent,
    patient_gradient,
    patient_gradients,
    patient_parts,
    patient_sum,
    request_seed,
)
from shared.networks import apply_network, initial_weights, restoration_loss
from shared.tasks.settings import CtDenoise, MrSr, MultiTask
from shared.training import fit_pairs, noisy_pool

CPU = torch.device("cpu")
CONTRACT = RunContract(
    name="ct",
    task=CtDenoise(size_px=32, angles=60, bins=48, pixel_mm=9.0),
    student=Residual(depth=2, width=4),
    anchor_network=Residual(depth=2, width=4),
    probes=Probes(draws=2, clip_norm=1000.0),
    anchor=Anchor(local_steps=3, crop_px=16, clip_norm=1000.0),
)


def cohort(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1 + i % 3, 1, 32, 32, generator=generator) for i in range(count)]


def gradients(contract: RunContract, patients: list[torch.Tensor], **other: int) -> torch.Tensor:
    weights = torch.stack([initial_weights(contract.student, seed=s) for s in (0, 1)])
    return cohort_gradients(
        contract=contract,
        network="student",
        weights=weights,
        patients=patients,
        seed=other.get("seed", 5),
        device=CPU,
    )


def test_a_seed_depends_on_every_part_and_on_nothing_else() -> None:
    assert request_seed("a", 1) == request_seed("a", 1)
    assert len({request_seed("a", 1), request_seed("a", 2), request_seed("a1"), 0}) == 4
    assert 0 <= request_seed("a") < 2**63


def test_clipping_bounds_the_norm_keeps_the_direction_and_drops_nan() -> None:
    vector = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(clip(vector, norm=1.0), vector / 5)
    assert torch.equal(clip(vector, norm=5.1), vector)
    assert torch.equal(clip(torch.tensor([1.0, float("nan")]), norm=1.0), torch.zeros(2))
    assert torch.equal(clip(torch.zeros(2), norm=1.0), torch.zeros(2))


def test_a_patients_gradient_is_the_derivative_of_the_mean_squared_error() -> None:
    weights = initial_weights(CONTRACT.student, seed=0)
    lq, hq = torch.rand(2, 11, 1, 32, 32)
    ours = patient_gradient(contract=CONTRACT, network="student", weights=weights, lq=lq, hq=hq)
    leaf = weights.clone().requires_grad_(True)
    (apply_network(CONTRACT.student, leaf, lq) - hq).square().mean().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(ours, leaf.grad, rtol=1e-4, atol=1e-7)


def test_the_cohorts_gradients_are_the_mean_of_the_patients() -> None:
    patients = cohort(4)
    weights = torch.stack([initial_weights(CONTRACT.student, seed=s) for s in (0, 1)])
    for clip_norm in (1000.0, 1e-3):
        contract = CONTRACT.model_copy(update={"probes": Probes(draws=2, clip_norm=clip_norm)})
        each = patient_gradients(
            contract=contract,
            network="student",
            weights=weights,
            patients=patients,
            seed=5,
            device=CPU,
        )
        assert each.shape == (4, *weights.shape)
        torch.testing.assert_close(each.mean(0), gradients(contract, patients))
        assert float(each.norm(dim=-1).max()) <= clip_norm * 1.0001
    assert float(each.norm(dim=-1).min()) == pytest.approx(1e-3, rel=1e-4)


def test_every_patient_counts_the_same_however_many_slices_it_has() -> None:
    patients = cohort(3)
    together = gradients(CONTRACT, patients)
    parts = []
    for slices in patients:
        own = hashlib.sha256(slices.numpy().tobytes()).hexdigest()
        lq = noisy_pool(CONTRACT.task, slices, draws=2, seed=request_seed(5, own))
        rows = [
            patient_gradient(
                contract=CONTRACT,
                network="student",
                weights=initial_weights(CONTRACT.student, seed=s),
                lq=lq,
                hq=slices.repeat(2, 1, 1, 1),
            )
            for s in (0, 1)
        ]
        parts.append(torch.stack(rows))
    torch.testing.assert_close(together, torch.stack(parts).mean(0))


def test_a_gradient_of_a_multi_task_is_the_mean_over_its_parts_even_from_one_draw() -> None:
    single = (MrSr(size_px=32, factor=2), MrSr(size_px=32, factor=4))  # without noise
    tasks = (MultiTask(parts=single), *single)
    contracts = [
        CONTRACT.model_copy(update={"task": task, "probes": Probes(draws=1, clip_norm=1000.0)})
        for task in tasks
    ]
    together, first, second = (gradients(contract, cohort(2)) for contract in contracts)
    torch.testing.assert_close(together, (first + second) / 2)


def parts(contract: RunContract, patients: list[torch.Tensor], kind: str) -> list[torch.Tensor]:
    rows = (0, 1) if kind == "gradients" else (0,)
    network = "student" if kind == "gradients" else "anchor"
    weights = torch.stack([initial_weights(contract.student, seed=s) for s in rows])
    return list(
        patient_parts(
            contract=contract,
            kind=kind,  # type: ignore[arg-type]
            network=network,  # type: ignore[arg-type]
            weights=weights,
            patients=patients,
            seed=5,
            device=CPU,
        )
    )


@pytest.mark.parametrize("kind", ["gradients", "local-steps"])
def test_a_patients_part_is_the_same_whoever_else_is_there(kind: str) -> None:
    patients = cohort(3)
    everyone = parts(CONTRACT, patients, kind)
    for place in range(3):
        others = patients[:place] + patients[place + 1 :]
        left = everyone[:place] + everyone[place + 1 :]
        for one, other in zip(parts(CONTRACT, others, kind), left, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["gradients", "local-steps"])
@pytest.mark.parametrize("bound", [1e-3, 1000.0])
def test_dropping_any_patient_moves_the_sum_by_at_most_the_bound(kind: str, bound: float) -> None:
    patients = [*cohort(3), torch.full((1, 1, 32, 32), float("nan"))]
    everyone = patient_sum(parts(CONTRACT, patients, kind), bound=bound)
    moved = []
    for place in range(4):
        others = patients[:place] + patients[place + 1 :]
        without = patient_sum(parts(CONTRACT, others, kind), bound=bound)
        moved.append(float((everyone - without).norm()))
    assert max(moved) <= bound
    assert moved[3] == 0, "who is not finite counts as zero"
    # A tight bound is what holds it; a loose one holds nothing.
    assert (max(moved) == pytest.approx(bound)) == (bound == 1e-3)


def test_the_sum_of_any_parts_moves_by_at_most_the_bound() -> None:
    random = np.random.default_rng(4)
    for _ in range(1_000):
        rows, length = int(random.integers(1, 4)), int(random.integers(1, 40))
        bound = float(10 ** random.uniform(-3, 3))
        drawn = random.standard_normal((int(random.integers(2, 30)), rows, length))
        drawn *= 10.0 ** random.uniform(-6, 12, size=(len(drawn), 1, 1))
        broken = random.random(len(drawn)) < 0.2
        drawn[broken, 0, 0] = random.choice([np.nan, np.inf, -np.inf])
        each = [torch.from_numpy(one.astype(np.float32)) for one in drawn]
        dropped = int(random.integers(len(each)))
        without = patient_sum(each[:dropped] + each[dropped + 1 :], bound=bound)
        moved = float((patient_sum(each, bound=bound) - without).norm())
        assert moved <= bound
        assert not broken[dropped] or moved == 0


def test_a_sum_of_unclipped_parts_is_their_sum() -> None:
    each = [torch.rand(2, 5) for _ in range(4)]
    torch.testing.assert_close(patient_sum(each, bound=1e3), torch.stack(each).double().sum(0))


def test_the_joint_bound_is_of_all_rows_together() -> None:
    part = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    torch.testing.assert_close(patient_sum([part], bound=1.0), part.double() / 5)


def test_the_mean_of_patients_descents_goes_where_the_sites_does() -> None:
    """Both learn the same images; only whose steps are averaged differs."""
    contract = CONTRACT.model_copy(
        update={"anchor": CONTRACT.anchor.model_copy(update={"local_steps": 40})}
    )
    each = parts(contract, cohort(), "local-steps")
    together = local_descent(
        contract=contract,
        network="anchor",
        weights=initial_weights(contract.anchor_network, seed=0),
        patients=cohort(),
        seed=1,
        device=CPU,
    )
    mean = patient_sum(each, bound=1e3)[0].float() / len(each)
    assert float(torch.nn.functional.cosine_similarity(mean, together, dim=0)) > 0.8


def test_descents_stay_in_the_span_of_a_basis_a_patients_as_a_sites() -> None:
    start = initial_weights(CONTRACT.anchor_network, seed=0)
    basis = torch.linalg.qr(torch.randn(start.numel(), 6)).Q.T
    (of_patient,) = patient_parts(
        contract=CONTRACT,
        kind="local-steps",
        network="anchor",
        weights=start[None],
        patients=cohort(1),
        seed=5,
        device=CPU,
        basis=basis,
    )
    of_site = local_descent(
        contract=CONTRACT,
        network="anchor",
        weights=start,
        patients=cohort(),
        seed=5,
        device=CPU,
        basis=basis,
    )
    for descent in (of_patient[0], of_site):
        assert float(descent.norm()) > 0
        torch.testing.assert_close(descent @ basis.T @ basis, descent, atol=1e-5, rtol=0)


def test_a_patient_with_broken_pixels_contributes_zero() -> None:
    patients = cohort(3)
    broken = [*patients, torch.full((1, 1, 32, 32), float("nan"))]
    torch.testing.assert_close(gradients(CONTRACT, broken) * 4, gradients(CONTRACT, patients) * 3)


def test_a_descent_of_local_steps_repeats_and_is_clipped() -> None:
    weights = initial_weights(CONTRACT.anchor_network, seed=0)

    def descent(contract: RunContract, seed: int) -> torch.Tensor:
        return local_descent(
            contract=contract,
            network="anchor",
            weights=weights,
            patients=cohort(),
            seed=seed,
            device=CPU,
        )

    assert torch.equal(descent(CONTRACT, 1), descent(CONTRACT, 1))
    assert not torch.equal(descent(CONTRACT, 1), descent(CONTRACT, 2))
    tight = CONTRACT.model_copy(
        update={"anchor": CONTRACT.anchor.model_copy(update={"clip_norm": 1e-3})}
    )
    assert float(descent(tight, 1).norm()) == pytest.approx(1e-3, rel=1e-4)
    assert float(descent(CONTRACT, 1).norm()) > 1e-2


def test_an_empty_cohort_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one patient"):
        gradients(CONTRACT, [])
    with pytest.raises(ValueError, match="at least one patient"):
        patient_sum([], bound=1.0)
    with pytest.raises(ValueError, match="at least one patient"):
        patient_gradients(
            contract=CONTRACT,
            network="student",
            weights=torch.zeros(1, 1),
            patients=[],
            seed=0,
            device=CPU,
        )
    with pytest.raises(ValueError, match="at least one patient"):
        local_descent(
            contract=CONTRACT,
            network="anchor",
            weights=initial_weights(CONTRACT.anchor_network, seed=0),
            patients=[],
            seed=0,
            device=CPU,
        )


def test_real_pairs_are_not_degraded() -> None:
    generator = torch.Generator().manual_seed(3)
    pairs = torch.rand(3, 2, 32, 32, generator=generator)
    found = gradients(CONTRACT, [pairs])
    weights = torch.stack([initial_weights(CONTRACT.student, seed=s) for s in (0, 1)])
    for row, theta in zip(found, weights, strict=True):
        leaf = theta.clone().requires_grad_(True)
        restored = apply_network(CONTRACT.student, leaf, pairs[:, 1:])
        loss = restoration_loss(restored, pairs[:, :1])
        torch.testing.assert_close(row, torch.autograd.grad(loss, leaf)[0], rtol=1e-4, atol=1e-7)
    # Neither the seed nor the task's noise has a part in it.
    torch.testing.assert_close(found, gradients(CONTRACT, [pairs], seed=99))
    louder = CONTRACT.model_copy(update={"task": CONTRACT.task.model_copy(update={"photons": 2.0})})
    torch.testing.assert_close(found, gradients(louder, [pairs]))


def test_local_steps_train_on_real_pairs() -> None:
    pairs = torch.rand(2, 2, 32, 32, generator=torch.Generator().manual_seed(5))
    weights = initial_weights(CONTRACT.anchor_network, seed=0)
    (part,) = patient_parts(
        contract=CONTRACT,
        kind="local-steps",
        network="anchor",
        weights=weights[None],
        patients=[pairs],
        seed=1,
        device=CPU,
    )
    own = request_seed(1, hashlib.sha256(pairs.numpy().tobytes()).hexdigest())
    after = fit_pairs(
        lq=pairs[:, 1:],
        hq=pairs[:, :1],
        network=CONTRACT.anchor_network,
        steps=3,
        seed=own,
        device=CPU,
        start=weights,
        learning_rate=CONTRACT.anchor.learning_rate,
        batch=CONTRACT.anchor.batch,
        crop_px=16,
    )
    torch.testing.assert_close(part[0], weights - after)
