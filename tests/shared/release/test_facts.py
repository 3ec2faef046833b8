from typing import get_args

import pytest

from shared.release.facts import (
    TAGS,
    task_facts,
    task_labels,
    task_tags,
    task_title,
    window_in_words,
    window_unit,
)
from shared.tasks.settings import (
    CtDenoise,
    CtKernel,
    CtSr,
    MrDenoise,
    MrSr,
    MrUndersampled,
    MultiTask,
    SingleTask,
    Task,
)

CURVE = (1.0, 0.9, 0.7, 0.4)
KERNEL = CtKernel(transfer=CURVE, noise_hu=CURVE, fitted_pairs=123)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (CtDenoise(photons=25, angles=90), ["25 photons", "90 views", "17% at 10"]),
        (CtSr(factor=4, blur_fwhm=1.5), ["every 4 pixels", "both axes", "1.5 sampling", "×4"]),
        (CtSr(direction="slice", noise_hu=7), ["rows alone", "7 HU"]),
        (KERNEL, ["the LQ comes from a degradation fitted at the sites to 123 real pairs"]),
        (MrDenoise(sigma=0.07), ["Rician", "0.07 (window units)"]),
        (MrSr(factor=4), ["central 1/4", "none added", "no phase"]),
        (MrSr(sigma=0.02), ["0.02 (window units) in each channel"]),
        (MrUndersampled(acceleration=3.5, centre_fraction=0.1), ["in 3.5", "10% of all lines"]),
    ],
)
def test_the_facts_of_a_task_hold_its_figures(task: Task, said: list[str]) -> None:
    facts = dict(task_facts(task))
    everything = "\n".join(facts.values())
    for text in said:
        assert text in everything
    assert f"`{task.name}`" in facts["task"]
    assert facts["image"] == f"128 × 128 pixels, {task.modality}"
    assert "noise of their own" in facts["approximated"]


def test_every_task_has_facts_and_a_tag() -> None:
    tasks = get_args(get_args(SingleTask)[0])
    assert {task.model_fields["name"].default for task in tasks} == set(TAGS)
    for task in tasks:
        one = KERNEL if task is CtKernel else task()
        assert len(task_facts(one)) >= 5
        assert task_tags(one) == ["ct" if one.modality == "CT" else "mri", TAGS[one.name]]


def test_windows_have_their_unit() -> None:
    assert (window_unit(CtSr()), window_unit(MrSr())) == ("HU", "permille of the 99.5th percentile")
    narrow = CtSr(window_low_hu=-160, window_high_hu=240)
    assert window_in_words(narrow) == "0 is -160 HU, 1 is 240 HU"
    assert "99.5th percentile" in window_in_words(MrDenoise())


def test_a_multi_task_names_its_parts_apart() -> None:
    task = MultiTask(parts=(MrSr(factor=2), MrDenoise(), MrSr(factor=4)))
    assert task_labels(task) == ("mr-sr-1", "mr-denoise", "mr-sr-2")
    assert task_labels(CtSr()) == ("ct-sr",)
    facts = dict(task_facts(task))
    assert "1/2" in facts["mr-sr-1: sampling"]
    assert "1/4" in facts["mr-sr-2: sampling"]
    assert "3 in all" in facts["pairs"]
    assert task_title(task).count("MR super-resolution") == 2
    assert task_tags(task) == ["mri", "super-resolution", "denoising"]


def test_pairs_nobody_counted_are_not_made_up() -> None:
    facts = dict(task_facts(CtKernel(transfer=CURVE, noise_hu=CURVE)))
    assert "fitted at the sites to real pairs (not counted)" in facts["LQ"]
