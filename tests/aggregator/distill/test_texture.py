import numpy as np
import pytest

from aggregator.distill.texture import power_law_noise, smooth_noise

AXIS = np.linspace(-160, 160, 256, dtype=np.float32)


def spectrum(exponent: float) -> np.ndarray:
    """Mean power (256, 256) of a few fields."""
    window = np.hanning(256)[:, None] * np.hanning(256)
    return np.mean(
        [
            np.abs(
                np.fft.fft2(
                    window
                    * power_law_noise(
                        AXIS, AXIS, 40.0 * n, exponent=exponent, finest_mm=1.5, octaves=6, seed=(n,)
                    )
                )
            )
            ** 2
            for n in range(6)
        ],
        axis=0,
    )


@pytest.mark.parametrize("exponent", [1.2, 3.0])
def test_power_falls_with_frequency_as_stated(exponent: float) -> None:
    radius = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256)[None])
    power = spectrum(exponent)

    def band(low: float, high: float) -> float:
        return float(power[(radius >= low) & (radius < high)].mean())

    # From 0.02 to 0.16 cycles a pixel: three octaves.
    slope = np.log(band(0.018, 0.022) / band(0.144, 0.176)) / np.log(8)
    assert slope == pytest.approx(exponent, abs=0.6)


def test_variance_is_one_at_every_scale() -> None:
    for scale in (3.0, 9.0):
        fields = [smooth_noise(AXIS, AXIS, 7.3 * n, scale_mm=scale, seed=(n,)) for n in range(12)]
        assert np.std(fields) == pytest.approx(1, abs=0.05)
        assert np.mean(fields) == pytest.approx(0, abs=0.1)


def test_a_field_is_one_field_in_space() -> None:
    here = smooth_noise(AXIS, AXIS, 10.0, scale_mm=8.0, seed=(1,))
    near = smooth_noise(AXIS, AXIS, 10.5, scale_mm=8.0, seed=(1,))
    far = smooth_noise(AXIS, AXIS, 60.0, scale_mm=8.0, seed=(1,))
    other = smooth_noise(AXIS, AXIS, 10.0, scale_mm=8.0, seed=(2,))

    def alike(field: np.ndarray) -> float:
        return float(np.corrcoef(here.ravel(), field.ravel())[0, 1])

    assert alike(near) > 0.97
    assert abs(alike(far)) < 0.2
    assert abs(alike(other)) < 0.2
    # Another grid over the same place sees the same values.
    part = smooth_noise(AXIS[100:120], AXIS[30:60], 10.0, scale_mm=8.0, seed=(1,))
    assert np.allclose(part, here[30:60, 100:120], atol=1e-4)
