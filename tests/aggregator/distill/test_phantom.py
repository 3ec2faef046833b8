import numpy as np
import pytest

from aggregator.distill.phantom import CONTRASTS, PERSONS, Anatomy, person_slice, phantom_slices
from aggregator.distill.tissues import Contrast
from shared.tasks.settings import Modality

EVERY: list[tuple[Anatomy, Modality]] = [
    ("thorax", "CT"), ("abdomen", "CT"), ("head", "CT"), ("head", "MR"), ("thorax", "MR"),
]  # fmt: skip


def slices(
    anatomy: Anatomy = "thorax",
    modality: Modality = "CT",
    *,
    count: int = 4,
    seed: int = 3,
    size_px: int = 64,
    textured: bool = True,
    contrast: Contrast | None = None,
) -> np.ndarray:
    return phantom_slices(
        anatomy=anatomy, modality=modality, contrast=contrast,
        count=count, size_px=size_px, seed=seed, textured=textured,
    )  # fmt: skip


def cut(anatomy: Anatomy, share: float, *, textured: bool = True) -> np.ndarray:
    modality: Modality = "MR" if anatomy == "head" else "CT"
    return person_slice(
        anatomy=anatomy, modality=modality, contrast="T1w", person=(3, 1), share=share,
        size_px=64, textured=textured,
    )  # fmt: skip


@pytest.mark.parametrize(("anatomy", "modality"), EVERY)
def test_a_larger_set_holds_the_smaller_one(anatomy: Anatomy, modality: Modality) -> None:
    few, many = slices(anatomy, modality, count=2), slices(anatomy, modality, count=4)
    assert few.shape == (2, 1, 64, 64)
    assert few.dtype == np.float32
    assert np.isfinite(many).all()
    assert np.array_equal(few, many[:2])
    assert not np.array_equal(few, slices(anatomy, modality, count=2, seed=4))


def test_slices_follow_from_the_seed_alone() -> None:
    before = slices(count=3)
    person_slice.cache_clear()
    assert np.array_equal(before, slices(count=3))


def test_a_second_turn_shows_the_same_persons_elsewhere() -> None:
    images = slices(count=PERSONS + 1)
    assert not np.array_equal(images[0], images[PERSONS])


@pytest.mark.parametrize("anatomy", ["thorax", "abdomen", "head"])
def test_neighbouring_slices_of_a_person_continue_each_other(anatomy: Anatomy) -> None:
    here = cut(anatomy, 0.5)

    def alike(share: float) -> float:
        return float(np.corrcoef(here.ravel(), cut(anatomy, share).ravel())[0, 1])

    # 1 mm or two, about 10 mm, and some 80 mm away.
    near, farther, far = alike(0.505), alike(0.54), alike(0.85)
    assert near > 0.97
    assert near > farther > far


def test_vessels_continue_from_slice_to_slice() -> None:
    """What texture adds is one texture in space: alike near by, not alike farther on."""

    def added(share: float) -> np.ndarray:
        return cut("thorax", share) - cut("thorax", share, textured=False)

    here = added(0.5)
    lung = cut("thorax", 0.5, textured=False) < -700
    lung &= cut("thorax", 0.52, textured=False) < -700
    lung &= cut("thorax", 0.5, textured=False) > -960
    near = np.corrcoef(here[lung], added(0.5005)[lung])[0, 1]
    far = np.corrcoef(here[lung], added(0.52)[lung])[0, 1]
    assert near > 0.85
    assert near > far + 0.15


def test_chest_and_abdomen_hold_their_tissues() -> None:
    chest = slices(count=8, textured=False)[:, 0]
    belly = slices("abdomen", count=8, textured=False)[:, 0]
    assert np.median(chest[:, 0]) == pytest.approx(-1000), "above the body is air"
    for images, ranges in (
        (chest, ((-920, -760), (-125, -80), (25, 120), (300, 1600))),
        (belly, ((-125, -80), (0, 200), (300, 1600))),
    ):
        for low, high in ranges:
            share = ((images > low) & (images < high)).mean()
            assert share > 0.004, f"no tissue between {low} and {high} HU"


def test_a_ct_head_is_bone_round_brain() -> None:
    image = cut_ct_head()
    brain = image[28:36, 24:30]
    assert 0 < np.median(brain) < 60
    assert (image > 700).mean() > 0.02
    assert image[0, 0] == pytest.approx(-1000, abs=1)


def cut_ct_head() -> np.ndarray:
    return person_slice(
        anatomy="head", modality="CT", contrast="T1w", person=(3, 1), share=0.6,
        size_px=64, textured=False,
    )  # fmt: skip


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_mr_is_in_thousandths_of_the_brightest(contrast: Contrast) -> None:
    images = slices("head", "MR", count=6, contrast=contrast)
    assert images.min() >= 0
    assert 700 < np.percentile(images, 99.9) < 1800
    assert np.median(images[:, 0, 0]) < 20, "air gives no signal"


def test_mr_sets_go_round_the_contrasts() -> None:
    mixed = slices("head", "MR", count=3)
    for number, contrast in enumerate(CONTRASTS):
        assert np.array_equal(
            mixed[number], slices("head", "MR", count=3, contrast=contrast)[number]
        )


def test_texture_is_added_inside_the_body_alone() -> None:
    plain, textured = slices(textured=False)[:, 0], slices()[:, 0]
    inside = (textured > -990) & (plain > -990)
    assert np.abs(textured - plain)[inside].mean() > 10
    assert np.abs(textured - plain)[:, :2].max() < 5
