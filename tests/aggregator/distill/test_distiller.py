import pytest
import torch

from aggregator.distill.distiller import Distiller
from aggregator.distill.prior import Prior
from aggregator.distill.spg import personalise
from shared.architectures import DnCnn, Residual
from shared.contract import Anchor, Probes, RunContract
from shared.gradients import cohort_gradients, local_descent, patient_gradients, request_seed
from shared.networks import apply_network, parameter_count
from shared.tasks.degradation import degrade
from shared.tasks.settings import CtDenoise, CtSr, MultiTask
from shared.training import enhance, enhance_symmetric

CPU = torch.device("cpu")
TASK = CtDenoise(size_px=32, angles=60, bins=48, pixel_mm=9.0)
CONTRACT = RunContract(
    name="ct",
    task=TASK,
    images=2,
    student=Residual(depth=2, width=6),
    anchor_network=Residual(depth=3, width=6),
    probes=Probes(requests=2, depths=(5, 20), steps=15, clip_norm=10.0),
    anchor=Anchor(rounds=2, local_steps=10, public_steps=10, crop_px=16),
)


def smooth(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.interpolate(
        torch.rand(count, 1, 8, 8, generator=generator), size=(32, 32), mode="bilinear"
    )


def hospital(seed: int = 1) -> list[torch.Tensor]:
    return list(smooth(3, seed)[:, None])


def distiller(contract: RunContract = CONTRACT) -> Distiller:
    free = 0.5 * smooth(6, seed=0)
    return Distiller(contract, Prior(free[: contract.images], free, {}), device=CPU)


def changed(**parts: object) -> RunContract:
    """The contract with fields changed; a part given as a dict changes fields of that part."""
    update = {
        name: getattr(CONTRACT, name).model_copy(update=value) if isinstance(value, dict) else value
        for name, value in parts.items()
    }
    return RunContract.model_validate(CONTRACT.model_copy(update=update).model_dump())


def one_round(distil: Distiller) -> None:
    ask, weights = distil.ask()
    compute = local_descent if ask.kind == "local-steps" else cohort_gradients
    contract = distil.contract
    answer = compute(
        contract=contract,
        network=ask.network,
        weights=weights[0] if ask.kind == "local-steps" else weights,
        patients=hospital(),
        seed=request_seed(contract.digest(), ask.round),
        device=CPU,
    )
    distil.absorb([answer.view_as(weights)], patients=[5])


def finished(distil: Distiller) -> Distiller:
    distil.prepare()
    while not distil.finished:
        one_round(distil)
    return distil


def test_a_restored_run_ends_as_one_that_was_never_stopped() -> None:
    straight = finished(distiller())
    stopped = distiller()
    stopped.prepare()
    for _ in range(CONTRACT.rounds):
        one_round(stopped)
        resumed = distiller()
        resumed.restore({name: value.clone() for name, value in stopped.state().items()})
        stopped = resumed
    for one, other in zip(straight.pairs(), stopped.pairs(), strict=True):
        assert torch.equal(one, other)


def test_released_pairs_have_gradient_zero_at_the_anchor() -> None:
    contract = changed(anchor={"symmetric": False})
    distil = finished(distiller(contract))
    lq, hq = distil.pairs()
    assert distil.anchor_weights is not None
    torch.testing.assert_close(hq, enhance(contract.anchor_network, distil.anchor_weights, lq))
    leaf = distil.anchor_weights.clone().requires_grad_(True)
    loss = (apply_network(contract.anchor_network, leaf, lq) - hq).square().mean()
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert float(gradient.norm()) < 1e-6


def test_targets_are_by_default_the_anchors_mean_over_the_symmetries() -> None:
    distil = finished(distiller())
    lq, hq = distil.pairs()
    assert distil.anchor_weights is not None
    expected = enhance_symmetric(CONTRACT.anchor_network, distil.anchor_weights, lq)
    assert torch.equal(hq, expected)
    assert not torch.equal(hq, enhance(CONTRACT.anchor_network, distil.anchor_weights, lq))


@pytest.mark.parametrize("inputs", ["matched", "start"])
def test_the_anchor_answers_for_the_images_the_contract_names(inputs: str) -> None:
    distil = finished(distiller(changed(anchor={"inputs": inputs})))
    images = distil.images if inputs == "matched" else distil.start
    assert not torch.equal(distil.images, distil.start)
    seed = request_seed(distil.contract.digest(), "release")
    torch.testing.assert_close(distil.pairs()[0], degrade(TASK, images, seed=seed))


def test_pairs_of_several_tasks_come_task_by_task() -> None:
    sharp = CtSr(size_px=32, factor=2)
    contract = changed(task=MultiTask(parts=(TASK, sharp)), images=3)
    distil = finished(distiller(contract))
    lq, hq = distil.pairs()
    assert lq.shape == hq.shape == (6, 1, 32, 32)
    seed = request_seed(contract.digest(), "release")
    torch.testing.assert_close(lq[3:], degrade(sharp, distil.images, seed=seed))
    bare = distiller(changed(task=MultiTask(parts=(TASK, sharp)), anchor={"rounds": 0}))
    assert torch.equal(bare.pairs()[1], torch.cat([bare.images, bare.images]))


def test_probes_go_through_the_named_networks_and_entries_remember_theirs() -> None:
    contract = changed(
        probes={"requests": 3, "networks": ("student", "anchor")},
        anchor={"rounds": 0},
        student=DnCnn(depth=3, width=4),
    )
    distil = finished(distiller(contract))
    assert [entry.network for entry in distil.bank.entries] == (
        ["student"] * 2 + ["anchor"] * 2 + ["student"] * 2
    )
    for entry in distil.bank.entries:
        assert entry.weights.numel() == parameter_count(contract.network(entry.network))


@pytest.mark.parametrize("persona", ["federation", "cohort", "patient"])
def test_images_follow_the_target_of_their_persona(persona: str) -> None:
    contract = changed(
        images=4,
        granularity="patient",
        spg={"persona": persona},
        anchor={"rounds": 0},
        probes={"requests": 1, "steps": 1},
    )
    distil = distiller(contract)
    distil.prepare()
    _, weights = distil.ask()
    answers = [
        patient_gradients(
            contract=contract,
            network="student",
            weights=weights,
            patients=hospital(seed)[:count],
            seed=seed,
            device=CPU,
        )
        for seed, count in ((1, 3), (2, 2))
    ]
    distil.absorb(answers, patients=[10, 10])
    entry, patients = distil.bank.entries[1], torch.cat(answers)[:, 1]
    sites = torch.stack([answer[:, 1].mean(0) for answer in answers])
    expected = {
        "federation": sites.mean(0, keepdim=True),
        "cohort": sites,
        # Five patients, four images: the fifth shares the first image.
        "patient": torch.cat([(patients[:1] + patients[4:]) / 2, patients[1:4]]),
    }[persona]
    torch.testing.assert_close(entry.targets, expected)
    torch.testing.assert_close(entry.variance, patients.var(0) / 5)


def test_with_cohort_personas_each_image_nears_its_own_hospital() -> None:
    contract = changed(
        spg={"persona": "cohort"}, anchor={"rounds": 0}, probes={"requests": 1, "steps": 60}
    )
    distil = distiller(contract)
    distil.prepare()
    _, weights = distil.ask()

    def gradients(images: torch.Tensor, seed: int) -> torch.Tensor:
        return cohort_gradients(
            contract=contract,
            network="student",
            weights=weights,
            patients=list(images[:, None]),
            seed=seed,
            device=CPU,
        )

    bright = gradients(0.7 + 0.3 * smooth(3, seed=1), 0)
    dark = gradients(0.3 * smooth(3, seed=1), 0)
    distil.absorb([bright, dark], patients=[5, 5])

    def distance(image: int, target: torch.Tensor) -> float:
        ours = gradients(distil.images[image : image + 1], 9)
        return float((ours - target).square().sum() / target.square().sum())

    assert distance(0, bright) < distance(1, bright)
    assert distance(1, dark) < distance(0, dark)


@pytest.mark.parametrize("form", ["exact", "finite-difference"])
@pytest.mark.parametrize("distance", ["l2", "cosine", "cosine-norm", "snr"])
def test_every_distance_and_form_moves_the_images(form: str, distance: str) -> None:
    contract = changed(
        anchor={"rounds": 0},
        probes={"requests": 1, "steps": 3, "form": form, "distance": distance},
    )
    distil = finished(distiller(contract))
    assert bool(torch.isfinite(distil.images).all())
    assert not torch.equal(distil.images, distil.start)


def test_with_every_part_of_spg_off_the_images_stay_the_start() -> None:
    off = dict.fromkeys(("tone", "spectrum", "warp", "residual"), False)
    distil = finished(distiller(changed(spg=off)))
    assert torch.equal(distil.images, distil.start)


def test_matching_brings_the_sets_gradients_nearer_to_the_hospitals() -> None:
    contract = changed(anchor={"rounds": 0}, probes={"requests": 1, "steps": 60})
    distil = distiller(contract)
    distil.prepare()
    _, weights = distil.ask()
    target = cohort_gradients(
        contract=contract,
        network="student",
        weights=weights,
        patients=hospital(),
        seed=0,
        device=CPU,
    )

    def distance(images: torch.Tensor) -> float:
        ours = cohort_gradients(
            contract=contract,
            network="student",
            weights=weights,
            patients=[images],
            seed=9,
            device=CPU,
        )
        return float(((ours - target).square().sum(1) / target.square().sum(1)).mean())

    before = distance(distil.images)
    distil.absorb([target], patients=[5])
    assert distance(distil.images) < 0.9 * before


def test_without_anchor_rounds_the_targets_are_the_images_themselves() -> None:
    contract = changed(anchor={"rounds": 0}, probes={"requests": 1, "steps": 2})
    distil = finished(distiller(contract))
    assert torch.equal(distil.pairs()[1], distil.images)


def test_questions_out_of_order_are_refused() -> None:
    distil = distiller()
    with pytest.raises(RuntimeError, match="not prepared"):
        distil.ask()
    distil.prepare()
    with pytest.raises(RuntimeError, match="before ask"):
        distil.absorb([], patients=[])


def test_two_contracts_draw_different_noise() -> None:
    other = CONTRACT.model_copy(update={"seed": 1})
    assert not torch.equal(distiller().pairs()[0], distiller(other).pairs()[0])


@pytest.mark.slow
@pytest.mark.parametrize("gain", [-0.6, 1.0])
def test_matching_finds_from_gradients_how_sharp_a_hospitals_images_are(gain: float) -> None:
    only = {"tone": False, "warp": False, "residual": False}
    probes = {"requests": 1, "depths": (5, 20, 60), "steps": 60}
    contract = changed(
        spg=only, probes=probes, anchor={"rounds": 0, "public_steps": 1}, images=4, seed=3
    )
    free = smooth(4, seed=0) + 0.1 * torch.randn(
        (4, 1, 32, 32), generator=torch.Generator().manual_seed(5)
    )
    known = torch.zeros(4, 4)
    known[:, 0] = gain
    patients = list(personalise(free.clamp(0, 1), {"spectrum": known}, contract.spg)[:, None])
    distil = Distiller(contract, Prior(free.clamp(0, 1), free.clamp(0, 1), {}), device=CPU)
    distil.prepare()
    ask, weights = distil.ask()
    answer = cohort_gradients(
        contract=contract,
        network=ask.network,
        weights=weights,
        patients=patients,
        seed=request_seed(contract.digest(), ask.round),
        device=CPU,
    )
    distil.absorb([answer.view_as(weights)], patients=[5])
    found = distil.parameters["spectrum"][:, 0].mean().item()
    assert found * gain > 0
    assert abs(found - gain) < 0.6 * abs(gain)
