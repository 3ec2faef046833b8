"""The inversion must succeed where it is easy; else that it fails elsewhere says nothing."""

from dataclasses import replace

import pytest
import torch

from aggregator.attacks.inversion import (
    QUICK,
    Effort,
    Goal,
    _chosen,
    _control,
    evenly,
    measure,
    null_images,
)
from aggregator.attacks.reconstruction import LOOSE, nearest, observations, reconstruct
from aggregator.attacks.scene import Scene
from aggregator.attacks.summaries import Answer, Question, answers, gathered, parts
from shared.similarity import Likeness
from tests.attacks.conftest import CONTRACT, Watched, stage

LITTLE = Effort(
    steps=3, patients=2, sites=2, images=2, control_patients=1, control_requests=2, control_steps=2
)


@pytest.mark.slow
def test_the_control_succeeds() -> None:
    # The default student: more filters see more of an image.
    scene = stage(CONTRACT.model_copy(update={"student": type(CONTRACT.student)()}))
    effort = replace(QUICK, control_patients=1, control_steps=160)
    found = _control(scene, effort, seed=0, on_step=lambda: None)
    assert found["psnr_db"]["interval"][0] > 1.0
    assert found["ssim"]["interval"][0] > 0.05


def test_every_mode_has_its_figures(scene: Scene, asked: list[Question]) -> None:
    watched = Watched()
    found = measure(scene, asked, seed=0, effort=LITTLE, watch=watched)
    assert [row["mode"] for row in found["rows"]] == ["patient", "cohort", "federation"]
    assert [row["attacked_patients"] for row in found["rows"]] == [2, 8, 12]
    ended = watched.ended()
    assert list(ended) == ["what sites send", "nulls", "inversion", "its control"]
    assert (ended["what sites send"], ended["inversion"]) == (2 * 12, 2 * 3 * (2 + 2 + 1))
    for row in found["rows"]:
        for name in ("psnr_db", "ssim", "unaided_psnr_db", "unaided_ssim"):
            low, high = row[name]["interval"]
            assert low <= row[name]["mean"] <= high
    assert found["control_succeeded"] is False, "two steps are no attack"


def test_without_probes_no_single_patient_is_attacked(scene: Scene, asked: list[Question]) -> None:
    found = measure(scene, asked[:1], seed=0, effort=LITTLE, watch=Watched())
    assert [row["mode"] for row in found["rows"]] == ["cohort", "federation"]


def test_the_bar_is_for_means_over_patients(
    scene: Scene, asked: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who returned a participant's own image would be found out."""
    leak = scene.participants[0][:1]
    monkeypatch.setattr("aggregator.attacks.inversion.reconstruct", lambda *_, **__: leak.clone())
    found = measure(scene, asked, seed=0, effort=LITTLE, watch=Watched())
    assert not found["passed"]


def test_nulls_owe_nothing_to_a_participant(scene: Scene) -> None:
    nulls = null_images(scene)
    unseen = torch.cat(list(scene.unseen))
    assert torch.equal(nulls[0], unseen.mean(dim=0))
    taken = {one.numpy().tobytes() for slices in scene.participants for one in slices}
    assert taken.isdisjoint({one.numpy().tobytes() for one in nulls})


def test_a_choice_of_images_is_evenly_spaced() -> None:
    images = torch.arange(100.0).view(100, 1, 1, 1)
    assert evenly(images, 3).flatten().tolist() == [0.0, 50.0, 99.0]
    assert len(evenly(images[:2], 3)) == 2


def test_the_image_that_was_asked_is_among_the_nearest_to_its_gradient(
    calm_scene: Scene, calm_asked: list[Question]
) -> None:
    scene, asked = calm_scene, calm_asked
    question, free = asked[1], scene.prior.free
    own = parts(scene, question, [free[5:6]], site="site-0")[0]
    observed = observations(scene.contract, [(question, Answer(own, (0,)))])
    assert len(observed) == 2
    found = nearest(observed, free[:12], task=scene.contract.task, count=3, seed=0)
    assert found.shape == (3, 1, 32, 32)
    assert any(torch.equal(one, free[5]) for one in found)


def test_a_reconstruction_comes_nearer_to_what_was_sent(
    calm_scene: Scene, calm_asked: list[Question]
) -> None:
    scene, asked = calm_scene, calm_asked
    generator = torch.Generator().manual_seed(0)
    seen = [
        (one, answers(scene, one, gathered(scene, one), "cohort", generator=generator)[0])
        for one in asked
    ]
    observed = observations(scene.contract, seen)
    assert len(observed) == 1 + 2, "a descent, and a gradient at each probe"
    start = 0.5 * scene.prior.free[:2]  # too dark for anybody
    made = reconstruct(
        observed,
        start,
        task=scene.contract.task,
        bounds=LOOSE,
        steps=40,
        seed=0,
        on_step=lambda: None,
    )
    assert made.shape == start.shape
    assert 0 <= made.min() <= made.max() <= 1
    theta, hq = asked[1].weights, {"start": start, "made": made}
    target = seen[1][1].values
    apart = {
        name: (parts(scene, asked[1], list(one[:, None]), site="x").mean(0) - target).norm()
        for name, one in hq.items()
    }
    assert theta.shape == target.shape
    assert apart["made"] < 0.7 * apart["start"]


def test_an_oracle_chooses_nulls_that_serve_different_people() -> None:
    psnr = torch.tensor([[20.0, 1.0, 1.0], [15.0, 2.0, 2.0], [0.0, 0.0, 9.0], [0.0, 8.0, 0.0]])
    images = torch.arange(4.0).view(4, 1, 1, 1)
    nulls = Likeness(psnr, psnr, psnr)
    alone = _chosen(images, nulls, Goal([], (1,), 1), 0)
    assert alone.flatten().tolist() == [3.0]
    assert _chosen(images, nulls, Goal([], (0, 1, 2), 3), 0).flatten().tolist() == [0.0, 2.0, 3.0]
