import ast
import inspect
import math
import os
import random

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest

from site_agent import noise
from site_agent.noise import gaussian, grid, noised

Z, C = 1.47, 0.05


def test_deviation_is_that_which_was_asked_for():
    drawn = noised(np.zeros(100_000), deviation=Z * C)
    assert drawn.std() == pytest.approx(Z * C, rel=0.01)
    assert abs(drawn.mean()) < 5 * Z * C / math.sqrt(drawn.size)


def test_it_is_normal_also_in_the_tails():
    drawn = gaussian(400_001, deviation=2.0) / 2.0
    assert drawn.shape == (400_001,)
    assert kstest(drawn, "norm").pvalue > 1e-6
    edges = [1.0, 2.0, 3.0, 4.0]
    for edge in edges:
        expected = drawn.size * math.erfc(edge / math.sqrt(2))
        found = int((np.abs(drawn) > edge).sum())
        assert abs(found - expected) < 6 * math.sqrt(expected)


def test_neighbours_and_halves_are_independent():
    # The two numbers that come of one pair are half the length apart.
    drawn = gaussian(200_000, deviation=1.0)
    first, second = drawn[:100_000], drawn[100_000:]
    for left, right in ((first, second), (first**2, second**2), (drawn[:-1], drawn[1:])):
        assert abs(np.corrcoef(left, right)[0, 1]) < 6 / math.sqrt(len(left))
    squares = first**2 + second**2
    assert kstest(squares, chi2(2).cdf).pvalue > 1e-6


def test_no_seed_brings_it_back():
    def draw():
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        return gaussian(64, deviation=1.0)

    drawn = [draw() for _ in range(20)]
    assert len({values.tobytes() for values in drawn}) == 20
    assert not set(drawn[0]) & set(drawn[1])


def test_every_bit_comes_from_the_operating_system(monkeypatch):
    asked = []

    def zeros(count):
        asked.append(count)
        return bytes(count)

    monkeypatch.setattr(os, "urandom", zeros)
    drawn = gaussian(5, deviation=1.0)
    assert asked == [48]
    # The least uniform number there is, 2^-64: the farthest the tails reach, and no infinity.
    assert drawn[:3] == pytest.approx(math.sqrt(128 * math.log(2)))
    assert not drawn[3:].any()
    names = {
        node.attr if isinstance(node, ast.Attribute) else node.id
        for node in ast.walk(ast.parse(inspect.getsource(noise)))
        if isinstance(node, ast.Attribute | ast.Name)
    }
    assert not names & {"random", "seed", "default_rng", "torch", "secrets"}
    assert set(inspect.signature(noised).parameters) == {"values", "deviation"}


def test_largest_words_are_finite_too(monkeypatch):
    monkeypatch.setattr(os, "urandom", lambda count: b"\xff" * count)
    assert np.isfinite(gaussian(4, deviation=1e6)).all()


@pytest.mark.parametrize("deviation", [1e-6, 0.0735, 1.0, 3.0, 1e9])
def test_what_leaves_lies_on_a_grid_that_the_sum_cannot_move(deviation):
    step = grid(deviation)
    assert math.frexp(step)[0] == 0.5
    assert 2**-21 * deviation < step <= 2**-20 * deviation
    clear = np.random.default_rng(0).normal(size=(30, 7)) * deviation
    left = noised(clear, deviation=deviation)
    assert left.shape == (30, 7)
    assert (left / step == np.rint(left / step)).all()
    assert (np.abs(left - clear) < 10 * deviation).all()


def test_what_cannot_be_hidden_is_refused():
    for deviation in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="deviation"):
            gaussian(1, deviation=deviation)
        with pytest.raises(ValueError, match="deviation"):
            noised([0.0], deviation=deviation)
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            noised([0.0, value], deviation=1.0)
