import numpy as np
import pytest

from site_agent.intake.windowing import windowed


def one(hu, *, size_px, spacing_mm=(1.0, 1.0), low=-1000.0, high=1000.0):
    image = windowed([(np.asarray(hu, np.int16), spacing_mm)], size_px=size_px, low=low, high=high)
    assert image.shape == (1, 1, size_px, size_px)
    assert image.dtype == np.float32
    return image[0, 0]


def test_whole_number_of_pixels_is_averaged():
    hu = np.arange(64).reshape(8, 8) * 10
    expected = (hu.reshape(4, 2, 4, 2).mean(axis=(1, 3)) + 1000) / 2000
    assert one(hu, size_px=4) == pytest.approx(expected, abs=1e-6)


def test_fractional_reduction_keeps_the_mean():
    hu = np.random.default_rng(0).integers(-900, 900, (50, 50))
    assert one(hu, size_px=32).mean() == pytest.approx((hu.mean() + 1000) / 2000, abs=1e-5)


def test_a_wide_slice_is_padded_above_and_below():
    image = one(np.full((4, 8), 1000), size_px=8)
    assert image[:2].max() == 0 and image[6:].max() == 0
    assert image[2:6].min() == 1


def test_pixels_that_are_not_square_keep_the_patient_in_shape():
    # 8 rows of 2 mm by 16 columns of 1 mm: a square of 16 mm.
    assert one(np.full((8, 16), 1000), size_px=4, spacing_mm=(2.0, 1.0)).min() == 1


def test_enlarging_interpolates_linearly():
    image = one([[0, 100], [0, 100]], size_px=4, low=0.0, high=100.0)
    assert image[0].tolist() == pytest.approx([0, 0.25, 0.75, 1])


def test_values_stay_in_the_window():
    hu = np.random.default_rng(1).integers(-1024, 3000, (37, 61))
    image = one(hu, size_px=40, low=-160.0, high=240.0)
    assert image.min() == 0 and image.max() == 1
