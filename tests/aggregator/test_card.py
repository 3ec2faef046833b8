from typing import Any

import pytest

from aggregator.card import card, prior_in_words, provenance
from shared.architectures import RedCnn, UNet
from shared.contract import PriorSource, RunContract
from shared.tasks.settings import (
    CtDenoise,
    CtKernel,
    CtSr,
    MrDenoise,
    MrSr,
    MrUndersampled,
    MultiTask,
    Task,
)

CURVE = (1.0, 0.9, 0.7, 0.4)


def text_of(contract: RunContract, prior: dict[str, Any] | None = None) -> str:
    facts = provenance(
        contract=contract,
        pairs=8,
        sites=3,
        rounds=6,
        prior=prior or {},
        guarantee=None,
        utility=None,
    )
    return card(contract=contract, provenance=facts, utility=None)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (CtDenoise(), ["- ct\n- denoising", "0 is -1000 HU", "CT image", "10 photons"]),
        (CtSr(factor=4), ["- super-resolution", "CT super-resolution ×4"]),
        (
            CtKernel(transfer=CURVE, noise_hu=CURVE, fitted_pairs=31),
            ["the LQ comes from a degradation fitted at the sites to 31 real pairs"],
        ),
        (MrDenoise(), ["- mri\n- denoising", "MR image", "permille of the 99.5th percentile"]),
        (MrSr(), ["central 1/4"]),
        (MrUndersampled(), ["- reconstruction", "Cartesian"]),
        (
            MultiTask(parts=(CtDenoise(), CtSr())),
            ["- ct\n- denoising\n- super-resolution", "which of `ct-denoise`, `ct-sr`", "2 in all"],
        ),
    ],
)
def test_the_card_of_every_task(task: Task, said: list[str]) -> None:
    text = text_of(RunContract(name="demo", task=task))
    for one in said:
        assert one in text
    if task.modality == "MR":
        assert "HU" not in text
    if task.name != "ct-denoise" and not isinstance(task, MultiTask):
        assert "photons" not in text


def test_the_card_names_networks_and_what_they_did() -> None:
    contract = RunContract(
        name="demo", student=UNet(levels=2, width=8), anchor_network=RedCnn(width=32)
    )
    text = text_of(contract)
    assert "| made for | a U-Net halved 2 times, with 8 channels at full size |" in text
    assert "what RED-CNN of 32 channels, trained by all sites together" in text
    bare = contract.model_copy(
        update={"anchor": contract.anchor.model_copy(update={"rounds": 0, "symmetric": False})}
    )
    assert "the distilled images themselves" in text_of(bare)
    assert "local steps" not in text_of(bare)


@pytest.mark.parametrize(
    ("prior", "said"),
    [
        ({}, ["procedural thorax phantoms, textured", "of no person"]),
        ({"anatomy": "head", "textured": False}, ["procedural head phantoms, without texture"]),
        ({"kind": "public", "license": "CC-BY-4.0", "statement": "TCIA"}, ["public volumes"]),
        ({"kind": "both"}, ["half public volumes", "half procedural"]),
        ({"kind": "consented", "statement": "form 3 of 2025"}, ["consenting person"]),
    ],
)
def test_the_card_says_where_the_images_start(prior: dict[str, Any], said: list[str]) -> None:
    source = PriorSource.model_validate(prior)
    text = text_of(RunContract(name="demo", prior=source))
    for one in said:
        assert one in prior_in_words(source)
        assert one in text
    for name, key in (("licence", "license"), ("statement", "statement")):
        assert (f"| prior, {name} | {prior.get(key)} |" in text) == (key in prior)


def test_what_the_run_says_of_its_prior_is_in_the_card() -> None:
    text = text_of(RunContract(name="demo"), {"kind": "x", "anatomy": "y", "volumes": ["a", "b|c"]})
    assert "| prior, volumes | a; b\\|c |" in text
    assert "prior, kind" not in text
    assert "prior, anatomy" not in text


def test_what_may_change_of_the_prior_is_said() -> None:
    contract = RunContract(name="demo", spg={"tone": False, "warp_px": 3, "persona": "federation"})
    text = text_of(contract)
    assert "a diffeomorphic warp of at most 3 pixels, a residual of at most 0.1" in text
    assert "tone curve" not in text
    assert "the mean gradient of all sites" in text
    silent = RunContract(name="demo", probes={"requests": 0})
    assert "not: the images are the prior's own" in text_of(silent)


def test_gradients_of_patients_are_disclosed_as_such() -> None:
    contract = RunContract(name="demo", granularity="patient")
    assert "Gradients of single patients left the hospitals" in text_of(contract)
    assert "each patient's gradient, clipped" in text_of(contract)
    for other in (RunContract(name="demo"), RunContract(name="demo", granularity="federation")):
        assert "Gradients of single patients" not in text_of(other)
        assert "mean gradients, each patient's clipped" in text_of(other)


def test_what_is_done_to_a_summary_is_said() -> None:
    contract = RunContract(
        name="demo",
        anchor={"descent": "patient", "local_steps": 60},
        privacy={"directions": 24, "sketch": 512, "epsilon": 3},
    )
    text = text_of(contract)
    assert "each sketched to 512 numbers" in text
    assert "of each patient" in text
    assert "as its coordinates along 24 public directions" in text
    assert "Gaussian noise" in text
    assert "Gaussian noise" not in text_of(RunContract(name="demo"))
