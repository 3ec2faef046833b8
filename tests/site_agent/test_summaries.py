from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.architectures import Residual
from shared.contract import Anchor, Probes, RunContract
from shared.gradients import clip, patient_parts, request_seed
from shared.messages import Offer, ProbeHeader, RefusalCode, probe_batch
from shared.networks import initial_weights, parameter_count
from shared.subspace import basis_digest, principal_directions
from shared.tasks.settings import CtDenoise
from site_agent import summaries
from site_agent.cohort import Cohort, build_cohort
from site_agent.incidents import RefusedError
from site_agent.intake.slices import PatientSlices, Slice
from site_agent.policy import Policy
from site_agent.settings import SiteSettings
from site_agent.summaries import Inquiry, contribution, inquiry, summarise

TINY = Residual(depth=2, width=4)
LENGTH = parameter_count(TINY)
BASIS = principal_directions(
    torch.randn(5, LENGTH, generator=torch.Generator().manual_seed(0)), count=3
).numpy()
SCALES = np.ones((2, 2), np.float32)
QUIET = 1e-9
"""A noise multiplier so small that the answer is the sum."""


def contract(**changed: Any) -> RunContract:
    privacy = {"directions": 3, "basis": basis_digest(BASIS), "patients": 4}
    return RunContract.model_validate(
        {
            "name": "tiny",
            "task": CtDenoise(size_px=32, angles=30, bins=48).model_dump(),
            "min_patients": 2,
            "student": TINY.model_dump(),
            "anchor_network": TINY.model_dump(),
            "anchor": Anchor(
                rounds=1, local_steps=3, batch=2, crop_px=16, descent="patient", clip_norm=0.01
            ).model_dump(),
            "probes": Probes(requests=1, draws=1, clip_norm=0.01).model_dump(),
            **changed,
            "privacy": {**privacy, **changed.get("privacy", {})},
        }
    )


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Six patients of two slices, alike enough that no part of a network sees one of them alone."""
    generator = np.random.default_rng(0)
    common = generator.integers(-1000, 500, (2, 40, 40))

    def patients() -> Iterator[PatientSlices]:
        for number in range(6):
            voxels = (common + generator.integers(-60, 60, (2, 40, 40))).astype(np.int16)
            yield PatientSlices(f"{number:032x}", [Slice(one, (1, 1), 2.0) for one in voxels])

    return build_cohort(tmp_path_factory.mktemp("site") / "cohort", patients(), modality="CT")


def asked(
    cohort: Cohort,
    agreed: RunContract,
    kind: str = "local-steps",
    *,
    members: int = 0,
    **policy: int,
) -> Inquiry:
    rows = 1 if kind == "local-steps" else 2
    weights = np.stack([initial_weights(TINY, seed=1 + seed).numpy() for seed in range(rows)])
    arrays = {"weights": weights}
    if kind == "local-steps" and agreed.privacy.directions:
        arrays["basis"] = BASIS
    if kind == "gradients" and agreed.privacy.sketch:
        arrays["scales"] = SCALES
    network = "anchor" if kind == "local-steps" else "student"
    header = probe_batch(
        contract=agreed,
        round=1,
        kind=kind,  # type: ignore[arg-type]
        network=network,  # type: ignore[arg-type]
        weights=weights,
    ).header
    assert isinstance(header, ProbeHeader)
    offers = tuple(
        Offer(name=f"s{n}", public_key="0" * 64, signature="0" * 128) for n in range(members)
    )
    settings = SiteSettings(
        home=Path("/"),
        name="site-a",
        aggregator="localhost:1",
        images=Path("/"),
        policy=Policy.model_validate({"granularities": ("cohort", "patient"), **policy}),
    )
    return inquiry(
        header.model_copy(update={"offers": offers}), arrays, cohort=cohort, settings=settings
    )


def clipped_parts(one: Inquiry) -> torch.Tensor:
    """Of every patient in the cohort's order (P, K, R), by the functions of shared/."""
    header = one.header
    parts = patient_parts(
        contract=one.contract,
        kind=header.kind,
        network=header.network,
        weights=one.weights,
        patients=one.patients,
        seed=request_seed(header.contract_digest, 1, "site-a"),
        device=torch.device("cpu"),
        basis=torch.from_numpy(BASIS) if header.kind == "local-steps" else None,
    )
    bound = one.contract.patient_bound(header.kind, rows=len(one.weights))
    return torch.stack([clip(one.reduce(part).double(), norm=bound) for part in parts])


NOISED = {"epsilon": 3.0, "sketch": 8}
CASES = pytest.mark.parametrize("kind", ["local-steps", "gradients"])


@CASES
def test_clear_reduced_answers_are_the_mean_of_clipped_parts(cohort: Cohort, kind: str) -> None:
    one = asked(cohort, contract(privacy={"sketch": 8}), kind)
    values = summarise(one, noise_multiplier=None)
    np.testing.assert_allclose(values, clipped_parts(one).mean(0), rtol=1e-5, atol=1e-9)
    assert values.shape == one.shape == ((1, 3) if kind == "local-steps" else (2, 8))
    assert one.patients_at_least == 5


@CASES
def test_a_noised_sum_is_divided_by_the_public_number(cohort: Cohort, kind: str) -> None:
    agreed = contract(privacy={**NOISED, "patients": 100})
    one = asked(cohort, agreed, kind)
    values = summarise(one, noise_multiplier=QUIET)
    np.testing.assert_allclose(values, clipped_parts(one).sum(0) / 100, rtol=1e-4, atol=1e-9)
    assert one.patients_at_least == 1, "the contract's minimum, not the site's number"


@pytest.fixture
def total(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """What patients add up to, in place of what they do: five times the bound of one."""
    fixed = torch.tensor([[0.03, -0.04, 0.0]], dtype=torch.float64)
    monkeypatch.setattr(summaries, "patient_sum", lambda *_, **__: fixed)
    return fixed


@pytest.mark.parametrize(("patients", "sampling", "longest"), [(3, 1.0, 3), (8, 0.5, 4), (9, 1, 5)])
def test_a_sum_is_no_longer_than_that_of_the_public_number_of_patients(
    cohort: Cohort,
    total: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    patients: int,
    sampling: float,
    longest: int,
) -> None:
    # By chance nobody takes part, once in 64 times.
    monkeypatch.setattr(summaries, "_takes_part", lambda _: True)
    privacy = {**NOISED, "patients": patients, "sampling": sampling}
    numerator, weight = contribution(
        asked(cohort, contract(privacy=privacy)), noise_multiplier=QUIET
    )
    assert weight == patients * sampling
    np.testing.assert_allclose(numerator, total.flatten() * longest / 5, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("members", [0, 3, 10])
def test_noise_has_the_deviation_of_the_mechanism(
    cohort: Cohort, total: torch.Tensor, members: int
) -> None:
    noise = {"noise": "distributed", "honest": 0.7} if members else {}
    agreed = contract(
        granularity="federation" if members else "cohort", privacy={**NOISED, **noise}
    )
    one = asked(cohort, agreed, members=members)
    clear = total.flatten().numpy() * 4 / 5
    drawn = [contribution(one, noise_multiplier=2.0)[0] - clear for _ in range(400)]
    # Of 3 members 2.1 are honest, of 10 seven: as many whole sites carry the noise.
    carriers = {0: 1, 3: 2, 10: 7}[members]
    expected = 2.0 * 0.01 / carriers**0.5
    assert float(np.std(drawn)) == pytest.approx(expected, rel=0.1)
    assert abs(float(np.mean(drawn))) < 5 * expected / 1200**0.5


def test_two_answers_to_one_request_have_different_noise(cohort: Cohort) -> None:
    one = asked(cohort, contract(privacy=NOISED))
    first, second = (summarise(one, noise_multiplier=1.0) for _ in range(2))
    assert not np.array_equal(first, second)


def test_patients_take_part_by_chance_and_the_mean_stays(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreed = contract(privacy={**NOISED, "patients": 100, "sampling": 0.5})
    one = asked(cohort, agreed)
    each = clipped_parts(one)

    class Drawn:
        numbers = iter([0.49, 0.51, 0.1, 0.9, 0.9, 0.0])

        def random(self) -> float:
            return next(self.numbers)

    monkeypatch.setattr(summaries, "_RANDOM", Drawn())
    values = summarise(one, noise_multiplier=QUIET)
    np.testing.assert_allclose(values, each[[0, 2, 5]].sum(0) / 50, rtol=1e-4, atol=1e-9)


def test_nobody_may_take_part(cohort: Cohort) -> None:
    one = asked(cohort, contract(privacy={**NOISED, "sampling": 1e-12}))
    numerator, _ = contribution(one, noise_multiplier=1.0)
    assert numerator.shape == (3,)
    assert float(np.abs(numerator).max()) < 10 * 0.01


def by_patient(patients: int) -> RunContract:
    return contract(granularity="patient", privacy={**NOISED, "patients": patients})


def test_by_patient_there_are_as_many_noised_blocks_as_the_contract_says(cohort: Cohort) -> None:
    one = asked(cohort, by_patient(9), "gradients")
    values = summarise(one, noise_multiplier=QUIET)
    assert values.shape == (9, 2, 8)
    empty = np.abs(values).max(axis=(1, 2)) < 1e-6
    assert empty.sum() == 3
    assert not empty[6:].all(), "left-over blocks lie among the others"
    np.testing.assert_allclose(values[~empty], clipped_parts(one), rtol=1e-4, atol=1e-9)
    again = asked(cohort, by_patient(9), "gradients")
    assert again.taken == one.taken
    noisy = [summarise(one, noise_multiplier=1.0) - values for _ in range(5)]
    # C = 0.01 sqrt(2), of two rows; 720 numbers.
    assert float(np.std(noisy)) == pytest.approx(0.01 * 2**0.5, rel=0.1)


def test_by_patient_nobody_beyond_the_public_number_speaks(cohort: Cohort) -> None:
    one = asked(cohort, by_patient(4), "gradients")
    assert (len(one.patients), one.taken) == (4, (True,) * 4)
    few = asked(cohort, by_patient(4), "gradients", max_patients=3)
    assert (len(few.patients), len(few.taken)) == (3, 4)


def test_a_descent_by_patient_is_summed_all_the_same(cohort: Cohort) -> None:
    one = asked(cohort, by_patient(9), "local-steps")
    assert summarise(one, noise_multiplier=QUIET).shape == (1, 3)


def test_a_basis_of_another_contract_is_refused(cohort: Cohort) -> None:
    with pytest.raises(RefusedError) as caught:
        asked(cohort, contract(privacy={"basis": "0" * 64}))
    assert caught.value.code is RefusalCode.BAD_REDUCTION


def test_what_is_longer_than_honest_does_not_leave(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = asked(cohort, contract(privacy={"sketch": 8}), "gradients")
    monkeypatch.setattr(summaries.Tally, "mean", lambda _: torch.ones(2, LENGTH))
    with pytest.raises(RuntimeError, match="exceeds"):
        summarise(one, noise_multiplier=None)
