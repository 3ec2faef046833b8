"""Whole runs in one process, of every way in which a summary can be reduced and noised."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from aggregator.federation import CHECKPOINT, RESULT
from aggregator.simulate import Hospital
from aggregator.trials import Trial, distil, read_trial
from shared.architectures import Residual
from shared.contract import RunContract
from shared.messages import SummaryHeader, decode
from shared.networks import parameter_count
from shared.tasks.settings import CtDenoise
from site_agent.cohort import build_cohort
from site_agent.intake.slices import PatientSlices, Slice
from site_agent.ledger import Ledger
from site_agent.outbox import Outbox

TINY = Residual(depth=2, width=4)
LENGTH = parameter_count(TINY)
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> tuple[Hospital, ...]:
    """Three of three patients each, a slice a patient."""
    random, place = np.random.default_rng(0), tmp_path_factory.mktemp("sites")
    for name in NAMES:
        coarse = random.uniform(-900, 500, size=(3, 4, 4)).repeat(8, axis=1).repeat(8, axis=2)
        patients = [
            PatientSlices(f"{name}{number}", [Slice(voxels.astype(np.int16), (2.0, 2.0), 2.0)])
            for number, voxels in enumerate(coarse)
        ]
        build_cohort(place / name / "cohort", patients, modality="CT")
    return tuple(Hospital(name, place / name, (name,)) for name in NAMES)


def contract(**changed: Any) -> RunContract:
    """Two rounds of descents and a request of two probes, unless said otherwise."""
    return RunContract.model_validate(
        {
            "name": "tiny",
            "task": CtDenoise(size_px=32, angles=30, bins=48, pixel_mm=9.0).model_dump(),
            "images": 2,
            "min_patients": 2,
            "student": TINY.model_dump(),
            "anchor_network": TINY.model_dump(),
            **changed,
            "anchor": {
                "rounds": 2,
                "local_steps": 3,
                "public_steps": 5,
                "batch": 2,
                "crop_px": 16,
                "descent": "patient",
                "clip_norm": 0.05,
                **changed.get("anchor", {}),
            },
            "probes": {"requests": 1, "depths": (2, 4), "steps": 2, **changed.get("probes", {})},
            "privacy": {"patients": 3, **changed.get("privacy", {})},
        }
    )


def run(hospitals: tuple[Hospital, ...], agreed: RunContract, place: Path) -> Trial:
    trial = Trial(agreed, hospitals, place, public=None)
    distil(trial)
    return trial


def answers(trial: Trial, site: str) -> list[Any]:
    """A site's summaries, in the order of the rounds."""
    files = sorted((trial.run / "outbox" / site).glob("*/*.safetensors"))
    messages = [decode(file.read_bytes()) for file in files]
    return [one for one in messages if isinstance(one.header, SummaryHeader)]


def spent(trial: Trial, site: str) -> int:
    """Releases with noise charged to a site's ledger, which holds all of its answers."""
    charges = Ledger(trial.run / "outbox" / site / "ledger").charges()
    assert len(charges) >= len(answers(trial, site))
    return sum(one.noise_multiplier is not None for one in charges)


DIRECTIONS, SKETCH = {"directions": 4}, {"sketch": 16}
NOISE = {"epsilon": 8.0}
SHAPES = {
    "directions": ({"privacy": DIRECTIONS}, (1, 4), (2, LENGTH)),
    "directions, pooled": (
        {"privacy": DIRECTIONS, "anchor": {"descent": "site"}},
        (1, 4),
        (2, LENGTH),
    ),
    "directions and noise": ({"privacy": {**DIRECTIONS, **NOISE}}, (1, 4), (2, LENGTH)),
    "sketch": ({"privacy": SKETCH}, (1, LENGTH), (2, 16)),
    "sketch and noise": ({"privacy": {**SKETCH, **NOISE}}, (1, LENGTH), (2, 16)),
    "both, by chance": (
        {"privacy": {**DIRECTIONS, **SKETCH, **NOISE, "sampling": 0.5}},
        (1, 4),
        (2, 16),
    ),
    "by patient, noise": (
        {
            "granularity": "patient",
            "spg": {"persona": "patient"},
            "privacy": {**DIRECTIONS, **SKETCH, **NOISE, "patients": 5},
        },
        (1, 4),
        (5, 2, 16),
    ),
}


@pytest.mark.parametrize("case", list(SHAPES))
def test_a_run_ends_with_pairs_from_answers_of_the_contracts_form(
    hospitals: tuple[Hospital, ...], tmp_path: Path, case: str
) -> None:
    changed, descents, gradients = SHAPES[case]
    trial = run(hospitals, contract(**changed), tmp_path)
    noised = "noise" in case or "chance" in case
    for site in NAMES:
        told = answers(trial, site)
        assert [one.arrays["values"].shape for one in told] == [descents, descents, gradients]
        assert spent(trial, site) == (3 if noised else 0)
        assert {one.header.patients_at_least for one in told} == {1}
        assert all((one.header.seconds == 0) == noised for one in told)
    made = read_trial(trial)
    assert torch.isfinite(made.hq).all()
    assert made.noise is not None
    assert made.noise.shape == (2, 1, 32, 32)
    state = load_file(trial.run / CHECKPOINT)
    # Three patients under noise may be shrunk to nothing.
    assert noised or not torch.equal(state["anchor"], state["public"])
    assert torch.isfinite(state["anchor"]).all()
    if "directions" in changed["privacy"]:
        basis = load_file(trial.run / "foundation.safetensors")["basis"]
        moved = state["anchor"] - state["public"]
        torch.testing.assert_close(basis.T @ (basis @ moved), moved, atol=1e-6, rtol=1e-3)
    blocks = gradients[0] if len(gradients) == 3 else 1
    result = json.loads((trial.run / RESULT).read_text())
    assert result["releases"] == 2 + 2 * blocks


def test_noise_shared_by_a_secure_sum_ends_too(
    hospitals: tuple[Hospital, ...], tmp_path: Path
) -> None:
    agreed = contract(
        granularity="federation", privacy={**DIRECTIONS, **SKETCH, **NOISE, "noise": "distributed"}
    )
    trial = run(hospitals, agreed, tmp_path)
    for site in NAMES:
        told = answers(trial, site)
        assert [one.arrays["masked"].shape for one in told] == [(4 + 1,), (4 + 1,), (2 * 16 + 1,)]
        assert spent(trial, site) == 3
    assert torch.isfinite(read_trial(trial).hq).all()


def test_a_finished_or_killed_run_goes_on_from_the_same_foundation(
    hospitals: tuple[Hospital, ...], tmp_path: Path
) -> None:
    agreed = contract(privacy={**DIRECTIONS, **SKETCH})
    trial = run(hospitals, agreed, tmp_path)
    first = read_trial(trial)
    for left in ("result.json", "pairs.safetensors"):
        (tmp_path / left).unlink()
    again = read_trial(run(hospitals, agreed, tmp_path))
    assert again.contract == first.contract
    assert torch.equal(again.hq, first.hq)
    assert Outbox(tmp_path / "outbox" / "a").answered() == 3, "nobody was asked twice"


def test_the_directions_of_another_seed_are_others(
    hospitals: tuple[Hospital, ...], tmp_path: Path
) -> None:
    agreed = contract(privacy=DIRECTIONS, probes={"requests": 0}, anchor={"rounds": 1})
    seeds = [agreed, agreed.model_copy(update={"seed": 1})]
    trials = [run(hospitals, one, tmp_path / str(number)) for number, one in enumerate(seeds)]
    bases = {read_trial(trial).contract.privacy.basis for trial in trials}
    assert len(bases) == 2
    assert None not in bases
