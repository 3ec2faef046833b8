import math

import numpy as np
import pytest

from shared.images import psnr_db, ssim, window


def test_window_maps_its_ends_to_zero_and_one_and_clips() -> None:
    hu = np.array([-3000.0, -1000.0, 0.0, 1000.0, 3000.0])
    np.testing.assert_allclose(window(hu, low_hu=-1000, high_hu=1000), [0, 0, 0.5, 1, 1])


def test_psnr_of_a_constant_error_is_its_logarithm() -> None:
    reference = np.full((8, 8), 0.5, np.float32)
    assert psnr_db(reference + 0.1, reference) == pytest.approx(20.0, abs=1e-5)
    assert psnr_db(reference, reference) == math.inf
    with pytest.raises(ValueError, match="shapes differ"):
        psnr_db(reference, reference[:4])


def test_ssim_is_one_for_equal_images_and_falls_with_noise() -> None:
    random = np.random.default_rng(0)
    reference = random.random((64, 64), dtype=np.float32)
    assert ssim(reference, reference) == pytest.approx(1.0)
    noise = random.normal(size=(64, 64)).astype(np.float32)
    assert 1 > ssim(reference + 0.05 * noise, reference) > ssim(reference + 0.2 * noise, reference)
