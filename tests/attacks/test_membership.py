from typing import Any

import pytest
import torch

from aggregator.attacks.membership import Effort, measure
from aggregator.attacks.pool import pool
from aggregator.attacks.scene import Scene
from aggregator.attacks.shadows import Losses, distilled, small, student_of
from aggregator.attacks.summaries import Question, questions
from shared.contract import Anchor, Probes, RunContract
from shared.training import noisy_pool
from tests.attacks.conftest import CONTRACT, Watched, stage

LITTLE = Effort(summaries=60, descents=4, distillations=4)


@pytest.fixture
def quick_students(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aggregator.attacks.shadows.STUDENT_STEPS", 4)


def aucs(result: dict[str, Any]) -> dict[tuple[str, ...], dict[str, Any]]:
    return {
        (row["of"], row["mode"], row.get("by", row["knows"])): row["auc"] for row in result["rows"]
    }


def test_of_clear_sums_members_are_found_and_the_controls_succeed(
    scene: Scene, asked: list[Question], quick_students: None
) -> None:
    result = measure(scene, asked, seed=0, effort=LITTLE, watch=Watched())
    found = aucs(result)
    assert set(found) == {
        *(
            ("summary", mode, knows)
            for mode in ("cohort", "federation")
            for knows in ("exact", "images", "everybody")
        ),
        ("descent", "cohort", "images"),
        ("pairs", "cohort", "loss"),
        ("pairs", "cohort", "likeness"),
    }
    assert found["summary", "cohort", "everybody"]["mean"] > 0.99
    assert found["summary", "cohort", "exact"]["interval"][0] > 0.7
    assert found["summary", "cohort", "images"]["interval"][0] > 0.5
    assert result["control_succeeded"], result["control"]


def test_under_noise_members_are_not_found(quick_students: None) -> None:
    scene = stage(
        RunContract.model_validate(
            CONTRACT.model_dump()
            | {
                "privacy": {"epsilon": 1.0, "patients": 4},
                "probes": CONTRACT.probes.model_dump() | {"clip_norm": 0.05},
                "anchor": CONTRACT.anchor.model_dump() | {"descent": "patient"},
            }
        )
    )
    asked = questions(scene, on_step=lambda *_: None)
    result = measure(scene, asked, seed=0, effort=LITTLE, watch=Watched())
    for (of, _, _), auc in aucs(result).items():
        assert of != "summary" or auc["mean"] < 0.6
    assert result["control_succeeded"], "the control is of clear means"


def test_steps_are_told_to_the_end(
    scene: Scene, asked: list[Question], quick_students: None
) -> None:
    watched = Watched()
    effort = Effort(summaries=3, descents=2, distillations=2)
    measure(scene, asked, seed=0, effort=effort, watch=watched)
    assert watched.ended() == {
        "everybody's parts": 2 * 26,
        "summaries": 2 * 3,
        "descents": 2,
        "pairs": 2 + 24,
    }


def test_a_small_run_is_no_larger_than_the_contracts() -> None:
    large = small(
        RunContract(name="large", probes=Probes(requests=9, depths=(30, 400, 500), steps=999))
    )
    assert large.anchor.rounds == large.probes.requests == 1
    assert (large.anchor.local_steps, large.probes.steps, large.images) == (100, 20, 4)
    assert large.probes.depths == (30, 120)
    tiny = small(CONTRACT)
    assert tiny.anchor == CONTRACT.anchor
    assert tiny.images == CONTRACT.images
    assert small(CONTRACT.model_copy(update={"anchor": Anchor(rounds=0)})).anchor.rounds == 0


def test_pairs_depend_on_who_took_part_and_on_the_seed(scene: Scene, asked: list[Question]) -> None:
    contract, people = small(CONTRACT), scene.everybody

    def images(chosen: range, seed: int) -> torch.Tensor:
        lq, hq = distilled(scene, contract, asked, [people[n] for n in chosen], seed=seed)
        assert lq.shape == hq.shape == (2, 1, 32, 32)
        return hq

    first = images(range(5), 1)
    assert torch.equal(first, images(range(5), 1))
    assert not torch.equal(first, images(range(5, 10), 1))
    assert not torch.equal(first, images(range(5), 2))


def test_a_person_whom_a_student_learned_from_has_less_loss(scene: Scene) -> None:
    losses = Losses(scene, scene.contract.student)
    hq = scene.participants[1][:1]
    lq = noisy_pool(scene.contract.task, hq, draws=8, seed=0)
    learned = student_of(scene, lq, hq.repeat(8, 1, 1, 1), seed=0)
    untouched, after = losses.of(torch.zeros_like(learned)), losses.of(learned)
    assert untouched.shape == (26,)
    assert after[1] < untouched[1]


def test_a_pool_tells_of_a_group_what_its_sites_would(scene: Scene, asked: list[Question]) -> None:
    everybody = pool(scene, asked, scene.everybody, site="hospital", on_patient=lambda: None)
    generator = torch.Generator().manual_seed(0)
    told = everybody.told([3, 5, 7, 9], sites=2, generator=generator)
    assert [question.kind for question, _ in told] == ["gradients", "local-steps"]
    assert all(set(answer.patients) == {3, 5, 7, 9} for _, answer in told)
    ((_, alone),) = everybody.told_alone(3, generator=generator)
    assert torch.equal(alone.values.flatten(), everybody.signatures("patient")[3])
    summary = everybody.summary([3, 5, 7, 9], "cohort", sites=1, generator=generator)
    mean = everybody.signatures("cohort")[[3, 5, 7, 9]].mean(dim=0)
    # But for what one patient alone moves.
    kept = summary != 0
    torch.testing.assert_close(summary[kept], mean[kept])
    assert kept.float().mean() > 0.8
    assert everybody.noise(4, sites=1, generator=generator).max() == 0
