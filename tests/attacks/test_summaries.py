"""What the attacks take for an answer is what a site answers, and noise is the contract's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch

from aggregator.admission import admit
from aggregator.attacks.scene import Scene, Sources, open_scene
from aggregator.attacks.summaries import (
    Answer,
    Question,
    answers,
    block,
    gathered,
    mixture,
    parts,
    questions,
)
from aggregator.secure_sum import SecureSum
from aggregator.simulate import Hospital, in_process
from shared.contract import Granularity, RunContract
from shared.messages import ProbeHeader, encode, payload_digest, probe_batch
from tests.attacks.conftest import CONTRACT, stage

VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "reduced": {
        "privacy": {"sketch": 16, "directions": 3},
        "anchor": CONTRACT.anchor.model_dump() | {"descent": "patient"},
    },
}


def varied(mode: Granularity, changes: dict[str, Any]) -> RunContract:
    return RunContract.model_validate(CONTRACT.model_dump() | {"granularity": mode} | changes)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three hospitals of four patients and one who is kept apart, two slices each."""
    random = np.random.default_rng(0)
    for hospital in "abc":
        for number in range(5):
            place = tmp_path / "data" / f"hospital-{hospital}" / f"p{number}"
            place.mkdir(parents=True)
            voxels = random.integers(-1000, 500, size=(2, 32, 32), dtype=np.int16)
            volume = SimpleITK.GetImageFromArray(voxels)
            volume.SetSpacing((9.0, 9.0, 3.0))
            SimpleITK.WriteImage(volume, str(place / "ct.nii.gz"))
    return tmp_path / "data"


def answered(
    scene: Scene, hospitals: list[Hospital], question: Question, place: Path
) -> list[torch.Tensor]:
    """What the sites' workers answer, through messages and admission, or the secure sum."""
    arrays = {} if question.basis is None else {"basis": question.basis.numpy()}
    if question.sketches:
        arrays = {"scales": torch.stack([one.scales for one in question.sketches]).numpy()}
    request = probe_batch(
        contract=scene.contract,
        round=question.round,
        kind=question.kind,
        network=question.network,
        weights=question.weights.numpy(),
        **arrays,
    )
    exchange = in_process(hospitals, modality="CT", outboxes=place / "outboxes")
    sites = [one.name for one in hospitals]
    if scene.contract.granularity == "federation":
        summed = SecureSum(
            request, exchange=exchange, file=place / f"{question.round}", tell=lambda *_: None
        )
        return [torch.from_numpy(summed.result().mean)]
    payload = encode(request)
    assert isinstance(request.header, ProbeHeader)
    told = []
    for site, answer in exchange(payload, question.round, sites).items():
        taken = admit(
            answer,
            site=site,
            request=request.header,
            request_digest=payload_digest(payload),
            weights=request.arrays["weights"],
        )
        told.append(torch.from_numpy(taken.values))
    return told


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", ["patient", "cohort", "federation"])
def test_answers_are_those_of_the_sites(
    mode: Granularity, variant: str, data: Path, tmp_path: Path
) -> None:
    sources = Sources(data, tmp_path / "place")
    scene, hospitals = open_scene(varied(mode, VARIANTS[variant]), sources, on_step=lambda *_: None)
    asked = questions(scene, on_step=lambda *_: None)
    assert [one.kind for one in asked] == ["local-steps", "gradients"]
    generator = torch.Generator().manual_seed(0)
    for question in asked:
        ours = answers(scene, question, gathered(scene, question), mode, generator=generator)
        theirs = answered(scene, hospitals, question, tmp_path)
        if mode == "patient" and question.kind == "gradients":
            # Sites shuffle their patients.
            blocks = torch.cat(theirs).flatten(1)
            for answer in ours:
                assert len(answer.patients) == 1
                apart = (blocks - answer.values.flatten()).norm(dim=1)
                assert apart.min() < 1e-5 * answer.values.norm()
            continue
        assert [one.patients for one in ours] == (
            [tuple(range(9))] if mode == "federation" else [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
        )
        for answer, values in zip(ours, theirs, strict=True):
            torch.testing.assert_close(answer.values.float(), values, rtol=1e-4, atol=1e-6)


def noised(**privacy: Any) -> Scene:
    anchor = CONTRACT.anchor.model_dump() | {"descent": "patient"}
    table = {"epsilon": 2.0, "patients": 4} | privacy
    distributed = privacy.get("noise") == "distributed"
    mode: Granularity = "federation" if distributed else "cohort"
    return stage(varied(mode, {"privacy": table, "anchor": anchor}))


@pytest.mark.parametrize(
    ("privacy", "sites", "releases", "share"),
    [
        ({}, 1, 1, 1 / 4),
        ({}, 3, 1, 3**0.5 / 12),
        ({"noise": "distributed", "honest": 1.0}, 3, 1, 1 / 12),
        ({"noise": "distributed"}, 3, 1, 3**0.5 / 12),
        ({"sampling": 0.5}, 1, 1, 1 / 2),
        ({}, 1, 4, 1 / 8),
    ],
)
def test_noise_is_that_of_the_contract(
    asked: list[Question], privacy: dict[str, Any], sites: int, releases: int, share: float
) -> None:
    scene, question = noised(**privacy), asked[1]
    nobody = torch.zeros(4, *question.weights.shape)
    found = mixture(
        scene,
        question,
        [nobody] * sites,
        patients=[4] * sites,
        generator=torch.Generator().manual_seed(0),
        releases=releases,
    )
    multiplier = scene.contract.noise_multiplier
    assert multiplier is not None
    bound = scene.contract.patient_bound("gradients", rows=2)
    assert found.std().item() == pytest.approx(share * multiplier * bound, rel=0.1)


def test_one_patients_noise_is_not_divided(asked: list[Question]) -> None:
    scene, question = noised(sampling=0.5), asked[1]
    found = block(
        scene,
        question,
        torch.zeros(question.weights.shape),
        generator=torch.Generator().manual_seed(0),
    )
    multiplier = scene.contract.noise_multiplier
    assert multiplier is not None
    bound = scene.contract.patient_bound("gradients", rows=2)
    assert found.std().item() == pytest.approx(2 * multiplier * bound, rel=0.1)


def test_noised_parts_are_clipped_together(asked: list[Question]) -> None:
    scene = noised()
    tight = scene.contract.model_copy(
        update={"probes": scene.contract.probes.model_copy(update={"clip_norm": 1e-4})}
    )
    found = parts(stage(tight), asked[1], scene.participants[:2], site="site-0")
    norms = found.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full((2,), 1e-4 * 2**0.5))


def test_a_patients_part_is_of_no_one_else(scene: Scene, asked: list[Question]) -> None:
    both = parts(scene, asked[1], scene.participants[:2], site="site-0")
    alone = parts(scene, asked[1], scene.participants[1:2], site="site-0")
    elsewhere = parts(scene, asked[1], scene.participants[1:2], site="site-1")
    assert torch.equal(both[1:], alone)
    assert not torch.equal(alone, elsewhere)


def test_descents_are_of_no_single_patient(scene: Scene, asked: list[Question]) -> None:
    generator = torch.Generator().manual_seed(0)
    sums = gathered(scene, asked[0])
    told: list[Answer] = answers(scene, asked[0], sums, "patient", generator=generator)
    assert [len(one.patients) for one in told] == [4, 4, 4]
