import pytest
import torch

from aggregator.distill.distiller import Distiller
from aggregator.distill.prior import build_prior
from shared.architectures import Residual
from shared.contract import Anchor, Probes, RunContract
from shared.gradients import cohort_gradients, local_descent, request_seed
from shared.networks import apply_network
from shared.tasks.settings import CtDenoise
from shared.training import enhance

CPU = torch.device("cpu")
CONTRACT = RunContract(
    name="ct",
    task=CtDenoise(size_px=32, angles=60, bins=48, pixel_mm=9.0),
    images=2,
    student=Residual(depth=2, width=6),
    anchor_network=Residual(depth=3, width=6),
    probes=Probes(requests=2, depths=(5, 20), steps=15, clip_norm=10.0),
    anchor=Anchor(rounds=2, local_steps=10, public_steps=10, crop_px=16),
)


def hospital() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    smooth = torch.nn.functional.interpolate(
        torch.rand(3, 1, 8, 8, generator=generator), size=(32, 32), mode="bilinear"
    )
    return list(smooth[:, None])


def distiller(contract: RunContract = CONTRACT) -> Distiller:
    return Distiller(contract, build_prior(contract, public=None), device=CPU)


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
    distil = finished(distiller())
    lq, hq = distil.pairs()
    assert distil.anchor_weights is not None
    torch.testing.assert_close(hq, enhance(CONTRACT.anchor_network, distil.anchor_weights, lq))
    leaf = distil.anchor_weights.clone().requires_grad_(True)
    loss = (apply_network(CONTRACT.anchor_network, leaf, lq) - hq).square().mean()
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert float(gradient.norm()) < 1e-6


def test_matching_brings_the_sets_gradients_nearer_to_the_hospitals() -> None:
    contract = CONTRACT.model_copy(
        update={
            "anchor": CONTRACT.anchor.model_copy(update={"rounds": 0}),
            "probes": CONTRACT.probes.model_copy(update={"requests": 1, "steps": 60}),
        }
    )
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
    contract = CONTRACT.model_copy(
        update={
            "anchor": CONTRACT.anchor.model_copy(update={"rounds": 0}),
            "probes": CONTRACT.probes.model_copy(update={"requests": 1, "steps": 2}),
        }
    )
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
