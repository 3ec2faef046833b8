import numpy as np
import pytest
import torch

from aggregator.arms import (
    LEAST_DRAWS,
    Arm,
    Distillation,
    Teacher,
    drawn,
    evenly_over_patients,
    training_sets,
)
from aggregator.distill.prior import build_prior
from aggregator.utility import HOSPITAL_ROWS, ROWS
from shared.architectures import Residual
from shared.contract import Anchor, PriorSource, RunContract
from shared.networks import apply_network, initial_weights, parameter_count
from shared.tasks.degradation import degrade
from shared.tasks.settings import CtDenoise

TASK = CtDenoise(size_px=32, angles=60, bins=48, pixel_mm=9.0)
SMALL = Residual(depth=2, width=4)
CONTRACT = RunContract(
    name="ct",
    task=TASK,
    images=3,
    prior=PriorSource(kind="both", license="CC0-1.0"),
    student=SMALL,
    anchor_network=SMALL,
    anchor=Anchor(crop_px=16),
)
TEACHER = Teacher(SMALL, initial_weights(SMALL, seed=1), symmetric=False)


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(seed))


def sets(rows: tuple[str, ...] = ROWS, *, distillations: int = 2, variants: bool = True):
    public = [images(4, seed).numpy() for seed in (5, 6)]
    return training_sets(
        rows,
        contract=CONTRACT,
        distillations=[
            Distillation(
                CONTRACT.model_copy(update={"seed": seed}),
                lq=images(3, 10 + seed),
                hq=images(3, 20 + seed),
                anchor=TEACHER,
                public=TEACHER,
                noise=images(3, 30 + seed),
            )
            for seed in range(distillations)
        ],
        prior=build_prior(CONTRACT, public=torch.from_numpy(np.concatenate(public))),
        train=[images(2, seed).numpy() for seed in range(40, 45)],
        public=public,
        every_variant=variants,
    )


@pytest.fixture(scope="module")
def arms() -> list[Arm]:
    return sets()


def of(arms: list[Arm], name: str) -> list[Arm]:
    return [arm for arm in arms if arm.name == name]


def test_every_row_is_there_in_its_order(arms: list[Arm]) -> None:
    assert tuple(dict.fromkeys(arm.name for arm in arms)) == ROWS


def test_rows_that_depend_on_the_distillation_have_an_arm_of_each(arms: list[Arm]) -> None:
    counted = {name: len(of(arms, name)) for name in ROWS}
    variants = {"public_and_textured": 2, "public_anchored": 4}
    each = dict.fromkeys(("prior_warped", "noise_targets", "distilled", "anchor"), 2)
    assert counted == {**dict.fromkeys(ROWS, 1), **variants, **each}
    for name in each:
        if name != "anchor":
            first, second = of(arms, name)
            assert first.digest() != second.digest()


def test_controls_and_full_see_eight_draws_or_more(arms: list[Arm]) -> None:
    for arm in arms:
        if arm.hq is not None and arm.name not in ("distilled", "real_same_bytes"):
            assert arm.draws >= LEAST_DRAWS
            assert arm.draws == max(LEAST_DRAWS, 96 // len(arm.hq))


def test_the_two_rows_of_counted_bytes_have_as_many_pairs(arms: list[Arm]) -> None:
    (real,), distilled = of(arms, "real_same_bytes"), of(arms, "distilled")[0]
    real_lq, real_hq = real.pairs(TASK)
    lq, hq = distilled.pairs(TASK)
    assert (real_lq.shape, real_hq.shape) == (lq.shape, hq.shape) == ((3, 1, 32, 32),) * 2
    assert torch.equal(lq, images(3, 10))
    assert torch.equal(hq, images(3, 20))


def test_sets_have_the_images_they_are_named_for(arms: list[Arm]) -> None:
    (public,) = of(arms, "public_direct")
    assert torch.equal(public.hq, torch.cat([images(4, 5), images(4, 6)]))
    sizes = {arm.variant: len(arm.hq) for arm in of(arms, "public_and_textured")}
    assert sizes == {"8 phantoms": 16, "48 phantoms": 56}
    (full,) = of(arms, "full")
    assert torch.equal(full.hq, torch.cat([images(2, seed) for seed in range(40, 45)]))
    assert len(of(arms, "prior_textured")[0].hq) == 48
    prior = build_prior(CONTRACT, public=public.hq)
    assert torch.equal(of(arms, "prior")[0].hq, prior.start)
    assert [len(arm.hq) for arm in of(arms, "public_anchored")[:2]] == [3, len(prior.free)]


def test_no_null_holds_a_hospitals_image(arms: list[Arm]) -> None:
    hospitals = {one.numpy().tobytes() for seed in range(40, 45) for one in images(2, seed)} | {
        one.numpy().tobytes() for seed in (20, 21) for one in images(3, seed)
    }
    for arm in arms:
        if arm.hq is not None and arm.name not in HOSPITAL_ROWS:
            assert hospitals.isdisjoint({one.numpy().tobytes() for one in arm.hq})


def test_a_phantom_prior_is_without_its_texture() -> None:
    contract = CONTRACT.model_copy(update={"prior": PriorSource()})
    prior = build_prior(contract, public=None)
    (arm,) = training_sets(
        ("prior",),
        contract=contract,
        distillations=[],
        prior=prior,
        train=[],
        public=None,
    )
    assert arm.hq is not None
    assert arm.hq.shape == prior.start.shape
    smooth, textured = (
        float(one.diff(dim=-1).diff(dim=-1).abs().mean()) for one in (arm.hq, prior.start)
    )
    assert smooth < textured


def test_only_wanted_rows_are_made_and_only_the_usual_variant() -> None:
    wanted = ("prior", "public_and_textured", "full")
    made = sets(wanted, variants=False)
    assert [(arm.name, arm.variant) for arm in made] == [
        ("prior", ""),
        ("public_and_textured", "8 phantoms"),
        ("full", ""),
    ]


def test_a_teachers_answers_replace_the_targets() -> None:
    arm = drawn("public_anchored", images(3), TEACHER)
    lq, hq = arm.pairs(TASK)
    assert lq.shape == hq.shape == (32 * 3, 1, 32, 32)
    expected = apply_network(SMALL, TEACHER.weights, lq[:5])
    assert torch.allclose(hq[:5], expected, atol=1e-6)


def test_symmetric_answers_turn_with_the_image() -> None:
    teacher = Teacher(SMALL, torch.randn(parameter_count(SMALL)) * 0.1, symmetric=True)
    lq = images(2)
    turned = teacher.restore(torch.rot90(lq, 1, dims=(-2, -1)))
    assert torch.allclose(turned, torch.rot90(teacher.restore(lq), 1, dims=(-2, -1)), atol=1e-5)


def test_the_digest_changes_with_all_that_is_trained_on() -> None:
    arm = drawn("prior", images(3))
    others = [
        drawn("prior", images(3, 1)),
        Arm("prior", images(3), draws=arm.draws + 1, seed=arm.seed),
        Arm("prior", images(3), draws=arm.draws, seed=arm.seed + 1),
        drawn("prior", images(3), TEACHER),
        drawn("prior", images(3), Teacher(SMALL, TEACHER.weights, symmetric=True)),
        Arm("prior", images(3), lq=degrade(TASK, images(3), seed=0)),
    ]
    assert len({one.digest() for one in [arm, *others]}) == 7
    assert drawn("full", images(3)).digest() == arm.digest(), "the same set under another name"


@pytest.mark.parametrize(
    ("slices", "count", "expected"),
    [
        ([1, 1, 1, 1, 1], 3, ["0.0", "2.0", "4.0"]),
        ([5, 5], 2, ["0.2", "1.2"]),
        ([4, 4], 4, ["0.1", "0.3", "1.1", "1.3"]),
        ([3, 3], 3, ["0.0", "0.2", "1.1"]),
        ([1], 2, ["0.0", "0.0"]),
    ],
)
def test_real_slices_are_spread_over_patients(
    slices: list[int], count: int, expected: list[str]
) -> None:
    patients = [
        np.stack([np.full((1, 1, 1), 10 * who + which, np.float32) for which in range(many)])
        for who, many in enumerate(slices)
    ]
    chosen = evenly_over_patients(patients, count).flatten().tolist()
    assert [f"{int(value) // 10}.{int(value) % 10}" for value in chosen] == expected
