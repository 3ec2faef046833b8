import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from site_agent.intake.mr import sampling_step, scale_of
from site_agent.intake.reasons import Skipped, SkipReason
from site_agent.intake.sequences import names_sequence


def head(*, seed=0, edge=48, slices=6, background=0.0):
    """Slices of a bright disc (600 to 1000) in air, smaller towards the top."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:edge, :edge] - edge / 2
    return [
        np.where(
            np.hypot(x, y) < edge / 2.5 * (1 - number / (2 * slices)),
            generator.uniform(600, 1000, (edge, edge)),
            background * generator.rayleigh(1.0, (edge, edge)),
        )
        for number in range(slices)
    ]


def reason_of(slices):
    with pytest.raises(Skipped) as caught:
        scale_of(slices)
    return caught.value.reason


@pytest.mark.parametrize("background", [0.0, 20.0])
def test_full_scale_is_the_percentile_of_what_is_not_air(background):
    slices = head(background=background)
    scale = scale_of(slices)
    tissue = np.concatenate([plane[plane >= 600] for plane in slices])
    assert 80 < scale.threshold < 605 if background else 0 <= scale.threshold < 605
    assert scale.full == pytest.approx(np.percentile(tissue, 99.5))
    stored = scale.thousandths(np.stack(slices))
    assert stored.dtype == np.int16
    assert np.percentile(stored[np.stack(slices) >= 600], 99.5) == pytest.approx(1000, abs=1)


@settings(max_examples=20, deadline=None)
@given(gain=st.floats(1e-3, 1e4), seed=st.integers(0, 100))
def test_the_gain_of_a_scanner_does_not_matter(gain, seed):
    slices = head(seed=seed, background=15.0)
    plain = scale_of(slices).thousandths(np.stack(slices))
    amplified = [plane * gain for plane in slices]
    other = scale_of(amplified).thousandths(np.stack(amplified))
    assert np.abs(plain - other).max() <= 1


@pytest.mark.parametrize("margin", [10, 60, 200])
def test_air_set_to_zero_does_not_matter_however_much_of_it_there_is(margin):
    slices = head()
    padded = [np.pad(plane, margin) for plane in slices]
    assert scale_of(padded).full == pytest.approx(scale_of(slices).full, rel=0.01)


def test_one_bright_voxel_does_not_matter():
    slices = head(background=15.0)
    scale = scale_of(slices)
    slices[2][20, 20] = 1e6
    again = scale_of(slices)
    assert again.full == pytest.approx(scale.full, rel=0.01)
    assert again.threshold == pytest.approx(scale.threshold, rel=0.05)
    assert again.thousandths(slices[2]).max() == 4000


def test_negative_ringing_becomes_zero():
    slices = head()
    slices[0][0, 0] = -60.0
    assert scale_of(slices).thousandths(slices[0])[0, 0] == 0


def test_the_ends_of_a_head_show_too_little():
    slices = head()
    scale = scale_of(slices)
    assert scale.shows_anatomy(slices[0])
    tip = np.zeros((48, 48))
    tip[:15, :15] = 800.0  # 9.8%
    assert not scale.shows_anatomy(tip)
    tip[:16, :16] = 800.0  # 11.1%
    assert scale.shows_anatomy(tip)


@pytest.mark.parametrize(
    ("slices", "reason"),
    [
        ([np.zeros((8, 8))], SkipReason.NO_SIGNAL),
        ([np.full((8, 8), 300.0)], SkipReason.NO_SIGNAL),
        ([np.full((8, 8), -3.0), np.full((8, 8), -1.0)], SkipReason.NO_SIGNAL),
        ([plane - 1000 for plane in head()], SkipReason.NO_SIGNAL),
        ([2 * plane - 1000 for plane in head()], SkipReason.NOT_MR),
    ],
    ids=["empty", "flat", "negative", "all below zero", "Hounsfield units"],
)
def test_what_is_no_mr_signal_is_a_code(slices, reason):
    assert reason_of(slices) is reason


@pytest.mark.parametrize(
    ("text", "sequence", "found"),
    [
        ("T1", "T1", True),
        ("T1W", "t1", True),
        ("sub-03_ses-1_T1w", "T1", True),
        ("anat-T1w", "T1", True),
        ("ax FLAIR 3mm", "flair", True),
        ("preT1", "T1", False),
        ("T2", "T1", False),
        ("", "T1", False),
        ("T1", "T1W", False),
        ("a.b", "a b", False),
    ],
)
def test_a_sequence_is_the_begin_of_a_word(text, sequence, found):
    assert names_sequence(text, sequence) is found


def test_a_slice_is_sampled_no_finer_than_needed():
    assert [sampling_step(*shape) for shape in [(16, 16), (256, 200), (257, 10), (512, 512)]] == [
        *(1, 1, 2, 2)
    ]
