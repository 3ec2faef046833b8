"""What releases with Gaussian noise cost: patient-level differential privacy, and its noise.

Unit: one patient, added or removed. A release is a sum that one patient moves by at most C, with
noise of standard deviation z C on it; ``noise_multiplier`` is z. Releases may depend on all that
went before them.

With every patient in every release, T of them are mu-GDP, mu^2 = sum of 1 / z^2 (Dong, Roth and
Su, arXiv 1905.02383), and delta(epsilon) = F(-epsilon / mu + mu / 2) - exp(epsilon)
F(-epsilon / mu - mu / 2), F the normal distribution function (Balle and Wang, arXiv 1805.06530):
exact. Where a patient is in each release by chance alone, the loss is summed on a grid, see
:mod:`shared.privacy_loss`.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from shared.privacy_loss import Releases, composed

LEAST_DELTA = 1e-9
"""Below it the grid of :mod:`shared.privacy_loss` is not precise enough."""

_PRECISION = 1e-9  # relative, of an epsilon
_LEAST_MANTISSA, _MANTISSAS = 10_000, 90_000  # of noise multipliers: five significant digits
_LEAST_EXPONENT, _MOST_EXPONENT = -2, 12  # so they lie between 0.01 and 1e12


@dataclass(frozen=True)
class Spent:
    """Releases that have been made: so many, a patient in each by chance ``sampling``."""

    noise_multiplier: float
    sampling: float = 1.0
    releases: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.noise_multiplier < math.inf or not 0 < self.sampling <= 1:
            raise ValueError("noise_multiplier must be above 0, sampling above 0 and at most 1")
        if self.releases < 0:
            raise ValueError("releases must not be negative")


def delta_of(
    *, epsilon: float, noise_multiplier: float, releases: int, sampling: float = 1.0
) -> float:
    """The delta that goes with ``epsilon`` after so many releases."""
    if epsilon < 0:
        raise ValueError("epsilon must not be negative")
    return _profile([Spent(noise_multiplier, sampling, releases)])(epsilon)


def epsilon_of(spent: Sequence[Spent], *, delta: float) -> float:
    """The epsilon that goes with ``delta`` after all that was ``spent``; 0 where nothing was.

    Raises ``ValueError`` for a delta outside ``LEAST_DELTA`` to 1.
    """
    _check(delta)
    profile = _profile(spent)
    if profile(0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while profile(high) > delta:
        low, high = high, 2 * high
    while high - low > _PRECISION * high:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if profile(middle) <= delta else (middle, high)
    return high


@lru_cache(maxsize=1024)
def noise_multiplier(
    *, epsilon: float, delta: float, releases: int, sampling: float = 1.0
) -> float:
    """The least noise multiplier with which ``releases`` cost at most ``epsilon`` at ``delta``.

    A number of five significant digits, so that two machines whose floats round differently
    find the same one; at least 0.01. Raises ``ValueError`` for an epsilon or a number of releases
    that is not above 0, or a delta outside ``LEAST_DELTA`` to 1.
    """
    _check(delta)
    if not 0 < epsilon < math.inf or releases < 1:
        raise ValueError("epsilon and releases must be above 0")

    def least(low: int, high: int, chance: float) -> int:
        """Bisects the numbers of five digits, the ``high``-th of which is enough."""
        while low < high:
            middle = (low + high) // 2
            cost = delta_of(
                epsilon=epsilon,
                noise_multiplier=_five_digits(middle),
                releases=releases,
                sampling=chance,
            )
            low, high = (low, middle) if cost <= delta else (middle + 1, high)
        return high

    # Chance only helps: noise that is enough with everybody in every release is enough.
    found = least(0, _MANTISSAS * (_MOST_EXPONENT - _LEAST_EXPONENT), 1.0)
    return _five_digits(found if sampling == 1 else least(0, found, sampling))


def _five_digits(number: int) -> float:
    """The ``number``-th float of five significant digits, counted from 0.01 on."""
    exponent, mantissa = divmod(number, _MANTISSAS)
    return float(f"{_LEAST_MANTISSA + mantissa}e{exponent + _LEAST_EXPONENT - 4}")


def _check(delta: float) -> None:
    if not LEAST_DELTA <= delta < 1:
        raise ValueError(f"delta must be at least {LEAST_DELTA} and below 1")


def _profile(spent: Sequence[Spent]) -> Callable[[float], float]:
    """Delta as a function of epsilon."""
    square, by_chance = 0.0, Counter[tuple[float, float]]()
    for one in spent:
        if one.sampling == 1:
            square += one.releases / one.noise_multiplier**2
        else:
            by_chance[one.noise_multiplier, one.sampling] += one.releases
    releases = [Releases(z, q, count) for (z, q), count in sorted(by_chance.items()) if count]
    if not releases:
        return partial(_gaussian_delta, mu=math.sqrt(square))
    if square:  # those with everybody in them are together like one
        releases.append(Releases(1 / math.sqrt(square), 1.0, 1))
    directions = composed(releases)
    return lambda epsilon: max(losses.delta(epsilon) for losses in directions)


def _gaussian_delta(epsilon: float, *, mu: float) -> float:
    """F(-a) - exp(epsilon) F(-b) for a = epsilon / mu - mu / 2 and b = a + mu."""
    if mu == 0:
        return 0.0
    a, b = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    # exp(epsilon) is the ratio of the normal densities at a and b: no large number is needed.
    return max(0.5 * math.erfc(a / math.sqrt(2)) - _density(a) * _mills(b), 0.0)


def _density(x: float) -> float:
    return math.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)


def _mills(x: float) -> float:
    """F(-x) over the normal density at x, of an x that is not negative."""
    if x < 5:
        return 0.5 * math.erfc(x / math.sqrt(2)) / _density(x)
    fraction = x  # Laplace's continued fraction
    for depth in range(60, 0, -1):
        fraction = x + depth / fraction
    return 1 / fraction
