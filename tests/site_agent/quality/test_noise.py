import numpy as np
import pytest

from site_agent.cohort import build_cohort
from site_agent.intake.slices import PatientSlices, Slice
from site_agent.quality.noise import cohort_noise, noise_level


def tissue(noise, *, seed=0, size=128):
    """A slope of soft tissue with white noise, between halves of air and bone."""
    generator = np.random.default_rng(seed)
    rows, columns = np.indices((size, size))
    image = 20 + 0.3 * rows - 0.2 * columns + noise * generator.standard_normal((size, size))
    image[:20], image[-20:] = -1000, 900
    return np.rint(image).astype(np.int16)


@pytest.mark.parametrize("noise", [5, 15, 40])
def test_white_noise_is_found_beside_edges_and_on_a_slope(noise):
    assert noise_level(tissue(noise), low=-150, high=250) == pytest.approx(noise, rel=0.05)


def test_without_tissue_nothing_is_said():
    assert noise_level(np.full((64, 64), -1000, np.int16), low=-150, high=250) is None
    assert noise_level(np.zeros((2, 500), np.int16), low=-150, high=250) is None


def test_of_each_patient_the_median(tmp_path):
    levels = [[10, 12, 30], [5], []]
    cohort = build_cohort(
        tmp_path,
        [
            PatientSlices(
                f"{number:032x}",
                [Slice(tissue(level, seed=level), (1.0, 1.0), 2.0) for level in own]
                or [Slice(np.full((64, 64), -1000, np.int16), (1.0, 1.0), 2.0)],
            )
            for number, own in enumerate(levels)
        ],
        modality="CT",
    )
    heard = []
    found = cohort_noise(cohort, on_progress=lambda done, total: heard.append((done, total)))
    assert found.levels == pytest.approx((5, 12), rel=0.06)
    assert (found.unit, found.slices) == ("HU", 4)
    assert heard == [(1, 3), (2, 3), (3, 3)]
