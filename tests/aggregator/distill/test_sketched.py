"""The distiller on sketched gradients: what it asks with, matches through and keeps."""

import pytest
import torch

from aggregator.distill.controls import noise_targets
from aggregator.distill.distiller import Distiller
from aggregator.distill.prior import Prior
from aggregator.distill.shrinkage import noise_deviation, shrunk
from shared.architectures import Residual
from shared.contract import RunContract
from shared.gradients import clip, cohort_gradients
from shared.sketch import LARGEST_SCALE, LEAST_SCALE, sketch_seed
from shared.tasks.settings import CtDenoise
from shared.trajectory import step_bound

CPU = torch.device("cpu")


def smooth(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.interpolate(
        torch.rand(count, 1, 8, 8, generator=generator), size=(32, 32), mode="bilinear"
    )


def contract(**probes: object) -> RunContract:
    plan = {"requests": 2, "depths": (5, 20), "steps": 15, "clip_norm": 10.0, **probes}
    return RunContract.model_validate(
        {
            "name": "ct",
            "task": CtDenoise(size_px=32, angles=60, bins=48, pixel_mm=9.0).model_dump(),
            "images": 2,
            "student": Residual(depth=2, width=6).model_dump(),
            "anchor": {"rounds": 0, "public_steps": 0, "crop_px": 16},
            "probes": plan,
            "privacy": {"sketch": 24},
        }
    )


def distiller(agreed: RunContract) -> Distiller:
    free = 0.5 * smooth(6, seed=0)
    distil = Distiller(agreed, Prior(free[:2], free, {}), device=CPU)
    distil.prepare()
    return distil


def whole(agreed: RunContract, weights: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Mean gradients (K, D) of images that stand for patients."""
    return cohort_gradients(
        contract=agreed,
        network="student",
        weights=weights,
        patients=list(images[:, None]),
        seed=3,
        device=CPU,
    )


def one_round(distil: Distiller) -> None:
    _, weights = distil.ask()
    distil.absorb(
        [distil.sketched(whole(distil.contract, weights, smooth(3, seed=1)))], patients=[5]
    )


def test_a_request_carries_positive_scales_of_every_probe() -> None:
    distil = distiller(contract())
    distil.ask()
    assert set(distil.reducing()) == {"scales"}
    scales = distil.reducing()["scales"]
    assert scales.shape == (2, 2)
    assert bool(((scales >= LEAST_SCALE) & (scales <= LARGEST_SCALE)).all())
    distil.ask()
    assert torch.equal(distil.reducing()["scales"], scales), "asked again, the very same"


def test_a_noised_sum_is_shrunk_by_the_noise_of_those_who_took_part() -> None:
    agreed = contract()
    document = {
        **agreed.model_dump(mode="json"),
        "granularity": "federation",
        "anchor": {
            **agreed.anchor.model_dump(),
            "rounds": 1,
            "descent": "patient",
            "clip_norm": 1.0,
            "public_steps": 2,
        },
        "privacy": {"epsilon": 8.0, "noise": "distributed", "honest": 1.0},
    }
    noised = RunContract.model_validate(document)
    moved = {}
    for sites in (3, 4):
        distil = distiller(noised)
        _, weights = distil.ask()
        answer = torch.ones_like(weights)
        distil.absorb([answer], patients=[1], sites=sites)
        assert distil.anchor_weights is not None
        deviation = noise_deviation(noised, "local-steps", rows=1, sites=sites)
        at_most = step_bound(noised)
        expected = clip(shrunk(answer, deviation=deviation)[0], norm=at_most)
        torch.testing.assert_close(
            weights[0] - distil.anchor_weights, expected, rtol=1e-3, atol=1e-6
        )
        moved[sites] = deviation
    assert moved[3] > moved[4], "of more sites less noise"


def test_an_entry_remembers_its_sketch_and_no_two_have_the_same() -> None:
    distil = distiller(contract())
    while not distil.finished:
        one_round(distil)
    digest = distil.contract.digest()
    seeds = [sketch_seed(digest, round=r, probe=p) for r in (1, 2) for p in (0, 1)]
    assert [entry.seed for entry in distil.bank.entries] == seeds
    assert {entry.targets.shape for entry in distil.bank.entries} == {(1, 24)}


@pytest.mark.parametrize("form", ["exact", "finite-difference"])
@pytest.mark.parametrize("distance", ["l2", "snr"])
def test_matching_through_a_sketch_brings_the_gradients_nearer(form: str, distance: str) -> None:
    agreed = contract(requests=1, steps=60, form=form, distance=distance)
    distil = distiller(agreed)
    _, weights = distil.ask()
    target = distil.sketched(whole(agreed, weights, smooth(3, seed=1)))

    def apart() -> float:
        ours = distil.sketched(whole(agreed, weights, distil.images))
        return float(((ours - target).square().sum(1) / target.square().sum(1)).mean())

    before = apart()
    distil.absorb([target], patients=[5])
    assert apart() < 0.9 * before


def test_a_restored_run_ends_as_one_that_was_never_stopped() -> None:
    straight, stopped = distiller(contract()), distiller(contract())
    while not straight.finished:
        one_round(straight)
        one_round(stopped)
        resumed = distiller(contract())
        resumed.restore({name: value.clone() for name, value in stopped.state().items()})
        stopped = resumed
    assert torch.equal(straight.images, stopped.images)


def test_the_null_has_targets_as_short_and_as_long_as_the_sets_own() -> None:
    null = noise_targets(distiller(contract()))
    assert null.finished
    first = null.bank.entries[0]
    assert first.targets.shape == (1, 24)
    fresh = distiller(contract())
    _, weights = fresh.ask()
    own = fresh.sketched(whole(fresh.contract, weights, fresh.images))[0]
    assert float(first.targets.norm()) == pytest.approx(float(own.norm()), rel=0.5)
