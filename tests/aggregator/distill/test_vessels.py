import numpy as np
import pytest

from aggregator.distill.section import Section
from aggregator.distill.vessels import MURRAY, grow_tree, tube_cover

ROOT = np.zeros(3)


def tree(halvings: int = 6) -> np.ndarray:
    random = np.random.default_rng(0)
    points = random.uniform((-50, -50, 0), (50, 50, 100), (200, 3))
    return grow_tree(ROOT, points, halvings=halvings, twig_mm=0.5, random=random)


def test_a_tree_is_binary_and_connected() -> None:
    segments = tree()
    assert segments.shape == (2**7 - 1, 7)
    assert np.array_equal(segments[0, :3], ROOT)
    ends = {tuple(one) for one in segments[:, 3:6].tolist()}
    assert all(tuple(one) in ends for one in segments[1:, :3].tolist()), "branches begin at ends"
    assert segments[:, 3:6].std(axis=0).min() > 15, "it fills the volume"


def test_radii_follow_murrays_law_on_the_whole() -> None:
    segments = tree(halvings=8)
    trunk, twigs = segments[0, 6], segments[-(2**8) :, 6]
    assert np.median(twigs) == pytest.approx(0.5, rel=0.05)
    assert trunk == pytest.approx(0.5 * 256 ** (1 / MURRAY), rel=0.6)


def test_tubes_are_drawn_with_their_width() -> None:
    axis = np.linspace(-60, 60, 121, dtype=np.float32)
    look = {"air": (-1000.0, 0.0)}
    section = Section(
        x_mm=axis, y_mm=axis, z=0.0, pixel_mm=1.0, seed=(1,), look=look, textured=True
    )
    thick = np.array([[-20, 0, 0, 20, 0, 0, 3]], np.float32)
    assert tube_cover(section, thick).sum() == pytest.approx(40 * 6 + np.pi * 9, rel=0.03)
    thin = np.array([[-20, 0, 0, 20, 0, 0, 0.3]], np.float32)
    assert 0.5 * 40 * 0.6 < tube_cover(section, thin).sum() < 1.5 * 40 * 0.6
    away = np.array([[-20, 0, 9, 20, 0, 9, 3], [300, 0, 0, 400, 0, 0, 3]], np.float32)
    assert tube_cover(section, away).sum() == 0
    assert tube_cover(section, np.zeros((0, 7), np.float32)).sum() == 0
