import numpy as np

from aggregator.distill.phantom import chest_phantoms, power_law_field


def test_a_larger_set_holds_the_smaller_one() -> None:
    few = chest_phantoms(count=2, size_px=48, seed=3, textured=True)
    many = chest_phantoms(count=5, size_px=48, seed=3, textured=True)
    assert np.array_equal(few, many[:2])
    assert not np.array_equal(few, chest_phantoms(count=2, size_px=48, seed=4, textured=True))


def test_tissues_have_the_ct_numbers_of_the_literature() -> None:
    hu = chest_phantoms(count=8, size_px=96, seed=0, textured=False)[:, 0]
    assert np.all(hu[:, 0] == -1000), "the corner is air"
    for low, high in ((-920, -700), (-130, -70), (20, 80), (300, 800)):
        share = ((hu > low) & (hu < high)).mean()
        assert share > 0.004, f"no tissue between {low} and {high} HU"


def test_texture_is_added_inside_the_body_alone() -> None:
    plain = chest_phantoms(count=4, size_px=64, seed=0, textured=False)
    textured = chest_phantoms(count=4, size_px=64, seed=0, textured=True)
    inside = (textured[:, 0] != -1000) & (plain[:, 0] != -1000)
    assert np.abs(textured - plain)[:, 0][inside].mean() > 10
    assert np.array_equal(plain[:, 0, :4], textured[:, 0, :4])


def test_the_spectrum_of_a_field_falls_as_stated() -> None:
    random = np.random.default_rng(0)
    power = np.mean(
        [
            np.abs(np.fft.fft2(power_law_field(128, exponent=2.0, random=random))) ** 2
            for _ in range(20)
        ],
        axis=0,
    )
    ratio = power[4, 0] / power[16, 0]
    assert 16 / 2 < ratio < 16 * 2  # (16 / 4) ** 2, within the spread of 20 fields
