import numpy as np
import pytest

from aggregator.distill.section import Section, ellipse_distance, smooth_union

AXIS = np.linspace(-60, 60, 121, dtype=np.float32)
LOOK = {"air": (-1000.0, 0.0), "muscle": (50.0, 10.0)}


def section(z: float = 0.0) -> Section:
    return Section(
        x_mm=AXIS, y_mm=AXIS, z=z, pixel_mm=1.0, seed=(1,), look=LOOK, textured=True, bend=0.0
    )


def test_painting_covers_the_area_of_the_shape() -> None:
    drawn = section()
    cover = drawn.paint(drawn.ellipse(3, -2, 30, 20), "muscle")
    assert cover.sum() == pytest.approx(np.pi * 30 * 20, rel=0.01)
    assert drawn.image[60, 60] == 50
    assert drawn.grain[60, 60] == 10
    assert drawn.image[0, 0] == -1000


def test_an_ellipsoid_is_cut_at_the_height_of_the_plane() -> None:
    # At half the height of a ball the cut's radius is sqrt(3) / 2 of the ball's.
    drawn = section(z=15.0)
    area = drawn.cover(drawn.ellipsoid((0, 0, 0), (30, 30, 30))).sum()
    assert area == pytest.approx(np.pi * 900 * 0.75, rel=0.01)
    assert section(z=31.0).ellipsoid((0, 0, 0), (30, 30, 30)).min() > 100


def test_a_tube_across_the_plane_is_a_disc_and_along_it_a_strip() -> None:
    drawn = section()
    across = drawn.cover(drawn.tube((5, 5, -20), (5, 5, 20), 6)).sum()
    assert across == pytest.approx(np.pi * 36, rel=0.03)
    along = drawn.cover(drawn.tube((-20, 0, 0), (20, 0, 0), 4)).sum()
    assert along == pytest.approx(40 * 8 + np.pi * 16, rel=0.03)


def test_distances_are_in_mm_near_the_edge() -> None:
    u = np.array([1.1, 0.9, 0.0, 0.0], np.float32)
    v = np.array([0.0, 0.0, 1.2, 0.95], np.float32)
    found = ellipse_distance(u, v, 40.0, 20.0)
    assert found == pytest.approx([4.0, -4.0, 4.0, -1.0], rel=1e-3)


def test_a_union_is_no_smaller_than_either() -> None:
    drawn = section()
    one, other = drawn.ellipse(-10, 0, 15, 15), drawn.ellipse(10, 0, 15, 15)
    both = smooth_union(one, other, radius_mm=5.0)
    assert np.all(both <= np.minimum(one, other) + 1e-4)
    assert np.all(both >= np.minimum(one, other) - 5 / 4 - 1e-4)
