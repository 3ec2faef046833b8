import math
import random

import pytest
from dp_accounting import DpEvent, GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from shared.accounting import LEAST_DELTA, Spent, delta_of, epsilon_of, noise_multiplier


def closed_form(epsilon: float, mu: float) -> float:
    """Delta of a mu-GDP mechanism, from scipy's distribution function."""
    left = norm.cdf(-epsilon / mu + mu / 2)
    return float(left - math.exp(epsilon + norm.logcdf(-epsilon / mu - mu / 2)))


def reference(*events: tuple[DpEvent, int], interval: float) -> PLDAccountant:
    accountant = PLDAccountant(value_discretization_interval=interval)
    for event, times in events:
        accountant.compose(event, times)
    return accountant


def test_the_table_of_costs() -> None:
    # Epsilon at delta = 1e-5 by noise multiplier (rows) and releases 1, 10, 50, 100, 200.
    table = {
        1: (4.38, 17.9, 54.4, 91.8, 159),
        4: (0.93, 3.34, 8.60, 13.2, 20.7),
        8: (0.43, 1.53, 3.80, 5.68, 8.60),
        16: (0.20, 0.72, 1.74, 2.56, 3.80),
    }
    for z, row in table.items():
        for releases, epsilon in zip((1, 10, 50, 100, 200), row, strict=True):
            found = epsilon_of([Spent(z, releases=releases)], delta=1e-5)
            assert found == pytest.approx(epsilon, rel=0.005, abs=0.005)


@pytest.mark.parametrize("mu", [1e-4, 0.03, 0.27, 1.0, 2.9, 12.0, 44.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-5, 0.05])
def test_everybody_in_every_release_is_the_closed_form(mu: float, delta: float) -> None:
    epsilon = epsilon_of([Spent(math.sqrt(7) / mu, releases=7)], delta=delta)
    if closed_form(1e-12, mu) <= delta:
        assert epsilon == 0
        return
    expected = brentq(lambda e: closed_form(e, mu) - delta, 1e-12, mu**2 + 20 * mu, xtol=1e-13)
    assert epsilon == pytest.approx(expected, rel=1e-5, abs=1e-9)
    found = delta_of(epsilon=expected, noise_multiplier=math.sqrt(7) / mu, releases=7)
    assert found == pytest.approx(delta, rel=1e-5)


def test_the_grid_agrees_with_the_closed_form_where_chance_is_almost_certain() -> None:
    for mu in (0.05, 0.7, 3.0):
        sampled = Spent(math.sqrt(30) / mu, 1 - 1e-12, 30)
        everybody = Spent(math.sqrt(30) / mu, 1.0, 30)
        expected = epsilon_of([everybody], delta=1e-6)
        assert epsilon_of([sampled], delta=1e-6) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_fifty_random_runs_agree_with_another_accountant() -> None:
    draw = random.Random(11)
    for number in range(50):
        releases = draw.randint(1, 300)
        sampling = 1.0 if number % 5 == 0 else math.exp(draw.uniform(math.log(0.005), 0))
        mu = math.exp(draw.uniform(math.log(0.1), math.log(3)))
        z = max(sampling * math.sqrt(releases) / mu, 0.4)
        noise: DpEvent = GaussianDpEvent(z)
        event = noise if sampling == 1 else PoissonSampledDpEvent(sampling, noise)
        other = reference((event, releases), interval=mu / 300)
        expected = other.get_epsilon(1e-5)
        about = f"z {z}, T {releases}, q {sampling}"
        found = epsilon_of([Spent(z, sampling, releases)], delta=1e-5)
        assert found == pytest.approx(expected, rel=0.01), about
        delta = delta_of(
            epsilon=expected / 2, noise_multiplier=z, releases=releases, sampling=sampling
        )
        assert delta == pytest.approx(other.get_delta(expected / 2), rel=0.01), about


def test_releases_of_several_kinds_agree_with_another_accountant() -> None:
    spent = [Spent(3.0, 1.0, 4), Spent(1.2, 0.2, 9), Spent(8.0, 1.0, 5), Spent(1.2, 0.2, 3)]
    other = reference(
        (GaussianDpEvent(3.0), 4),
        (GaussianDpEvent(8.0), 5),
        (PoissonSampledDpEvent(0.2, GaussianDpEvent(1.2)), 12),
        interval=1e-3,
    )
    expected = other.get_epsilon(1e-5)
    assert epsilon_of(spent, delta=1e-5) == pytest.approx(expected, rel=1e-3)
    assert epsilon_of(spent[::-1], delta=1e-5) == epsilon_of(spent, delta=1e-5)


def test_both_directions_count() -> None:
    # Of one release with little noise the loss of a patient removed is the larger one; with
    # strong sampling and a small epsilon that of one added: both by integrating the densities.
    for z, q, epsilon in ((0.5, 0.01, 1.0), (0.8, 0.9, 0.2)):
        cut = 0.5 + z**2 * math.log((math.exp(epsilon) - 1 + q) / q)
        removed = (1 - q) * norm.sf(cut / z) + q * norm.sf((cut - 1) / z)
        removed -= math.exp(epsilon) * norm.sf(cut / z)
        added = 0.0
        if math.exp(-epsilon) > 1 - q:
            cut = 0.5 + z**2 * math.log((math.exp(-epsilon) - 1 + q) / q)
            mixture = (1 - q) * norm.cdf(cut / z) + q * norm.cdf((cut - 1) / z)
            added = norm.cdf(cut / z) - math.exp(epsilon) * mixture
        found = delta_of(epsilon=epsilon, noise_multiplier=z, releases=1, sampling=q)
        assert found == pytest.approx(max(removed, added), rel=1e-4)


def test_cost_grows_with_releases_and_chance_and_falls_with_noise() -> None:
    base = epsilon_of([Spent(2.0, 0.3, 10)], delta=1e-5)
    assert epsilon_of([Spent(2.0, 0.3, 11)], delta=1e-5) > base
    assert epsilon_of([Spent(2.0, 0.4, 10)], delta=1e-5) > base
    assert epsilon_of([Spent(2.1, 0.3, 10)], delta=1e-5) < base
    assert epsilon_of([Spent(2.0, 0.3, 10)], delta=1e-6) > base
    assert epsilon_of([Spent(2.0, 0.3, 10), Spent(1e9)], delta=1e-5) == pytest.approx(base, 1e-4)


def test_nothing_spent_costs_nothing() -> None:
    assert epsilon_of([], delta=1e-5) == 0
    assert epsilon_of([Spent(1.0, releases=0), Spent(1.0, 0.5, 0)], delta=1e-5) == 0


@pytest.mark.parametrize("sampling", [1.0, 0.5, 0.02])
@pytest.mark.parametrize(("epsilon", "releases"), [(0.5, 1), (3.0, 6), (8.0, 64)])
def test_calibrated_noise_is_enough_and_little_less_is_not(
    epsilon: float, releases: int, sampling: float
) -> None:
    z = noise_multiplier(epsilon=epsilon, delta=1e-5, releases=releases, sampling=sampling)
    assert float(f"{z:.5g}") == z
    assert epsilon_of([Spent(z, sampling, releases)], delta=1e-5) <= epsilon
    less = delta_of(
        epsilon=epsilon, noise_multiplier=z * (1 - 2e-4), releases=releases, sampling=sampling
    )
    assert less > 1e-5


def test_known_noise_multipliers() -> None:
    # A single release: the exact calibration of Balle and Wang; 64 probes at epsilon 8.
    assert noise_multiplier(epsilon=1, delta=1e-5, releases=1) == pytest.approx(3.7306, abs=2e-4)
    assert noise_multiplier(epsilon=8, delta=1e-5, releases=64) == pytest.approx(4.80, abs=5e-3)
    # One patient in a million is in a release: any noise would do, the least there is comes.
    assert noise_multiplier(epsilon=1, delta=1e-5, releases=1, sampling=1e-6) == 0.01


def test_extremes_are_answered() -> None:
    for epsilon in (1e-6, 1000.0):
        for sampling in (1.0, 1e-4):
            z = noise_multiplier(
                epsilon=epsilon, delta=LEAST_DELTA, releases=128, sampling=sampling
            )
            cost = epsilon_of([Spent(z, sampling, 128)], delta=LEAST_DELTA)
            assert 0 < cost <= epsilon * (1 + 1e-9)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Spent(0.0),
        lambda: Spent(math.inf),
        lambda: Spent(1.0, 0.0),
        lambda: Spent(1.0, 1.1),
        lambda: Spent(1.0, releases=-1),
        lambda: epsilon_of([], delta=0.0),
        lambda: epsilon_of([], delta=1.0),
        lambda: delta_of(epsilon=-1, noise_multiplier=1, releases=1),
        lambda: noise_multiplier(epsilon=0, delta=1e-5, releases=1),
        lambda: noise_multiplier(epsilon=1, delta=1e-10, releases=1),
        lambda: noise_multiplier(epsilon=1, delta=1e-5, releases=0),
    ],
)
def test_numbers_that_mean_nothing_are_refused(wrong) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="must"):
        wrong()
