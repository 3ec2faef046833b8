"""Privacy loss of noised sums in which every patient takes part by chance, as masses on a grid.

One release adds Gaussian noise of standard deviation z to a sum that one patient moves by at most
1; the patient is in it with probability q (Poisson sampling). What can be seen of that patient is
one number: with it, of density P = (1 - q) N(0, z^2) + q N(1, z^2); without, Q = N(0, z^2). The
loss is log(P / Q). How the numbers come about:

1. cut the real line where the loss crosses multiples of one step; weigh each cell under P and Q;
2. split a cell's masses between its two ends so that both stay what they are. The pair of discrete
   distributions then tells P from Q at least as well as the truth: no rounding is in one's favour
   ("connect the dots", Doroshenko et al., arXiv 2207.04380);
3. losses of releases add up: masses are convolved, by FFT, on a window that Chernoff's bound says
   holds all but ``DROPPED`` of the sum; whatever lies outside counts as an infinite loss;
4. a patient who is added is the same pair with P and Q exchanged: both are kept, the worse counts.

Adaptive releases compose so, each direction by itself (Zhu, Dong and Wang, arXiv 2106.08567).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

POINTS = 2**15
"""Grid points of a window."""
DROPPED = 1e-14
"""Probability dropped at each of three places; all of it counts as an infinite loss."""

_NODES = 801  # of the quadrature behind Chernoff's bound
_TILTS = np.geomspace(1e-2, 1e6, 49)  # exponents among which the bound takes its best


class Releases(NamedTuple):
    """So many sums with noise of ``noise_multiplier``, a patient in each by chance ``sampling``."""

    noise_multiplier: float
    sampling: float
    number: int


@dataclass(frozen=True)
class LossDistribution:
    """Masses (N,) of a privacy loss at ``(first + k) * step``; the rest of 1 is at infinity."""

    first: int
    step: float
    masses: Floats

    def delta(self, epsilon: float) -> float:
        """The probability by which exp(epsilon) fails to bound the likelihood ratio."""
        start = max(math.floor(epsilon / self.step) + 1 - self.first, 0)
        losses = np.arange(self.first + start, self.first + len(self.masses)) * self.step
        return 3 * DROPPED + float(self.masses[start:] @ -np.expm1(epsilon - losses))


def composed(releases: Sequence[Releases]) -> tuple[LossDistribution, LossDistribution]:
    """The total loss of all ``releases``: of a patient who is removed, and of one who is added."""
    total = sum(part.number for part in releases)
    reach = math.sqrt(-2 * math.log(DROPPED / total))  # beyond it lies less than DROPPED / total
    windows = _windows(releases, reach)
    # Splitting moves the sum by this many steps at most, but with probability DROPPED (Hoeffding).
    slack = 4 + math.ceil(math.sqrt(-0.5 * total * math.log(DROPPED)))
    step = max(high - low for low, high in windows) / (POINTS - 2 * slack)
    spectra = [np.ones(POINTS // 2 + 1, np.complex128) for _ in windows]
    for part in releases:
        first, with_it, without = _cells(part, reach, step)
        # Losses of the exchanged pair are the negatives: the same masses, read backwards.
        placed = ((first, with_it), (1 - first - len(without), without[::-1]))
        for spectrum, (start, masses) in zip(spectra, placed, strict=True):
            places = (start + np.arange(len(masses))) % POINTS
            ring = np.bincount(places, weights=masses, minlength=POINTS)
            spectrum *= np.fft.rfft(ring) ** part.number
    removed, added = (
        _unrolled(spectrum, math.floor(low / step) - slack, step)
        for spectrum, (low, _) in zip(spectra, windows, strict=True)
    )
    return removed, added


def _unrolled(spectrum: NDArray[np.complex128], first: int, step: float) -> LossDistribution:
    ring = np.fft.irfft(spectrum, POINTS)
    return LossDistribution(first, step, np.maximum(np.roll(ring, -first), 0.0))


def _windows(releases: Sequence[Releases], reach: float) -> list[tuple[float, float]]:
    """Bounds that the total loss of a patient removed, and of one added, passes hardly ever."""
    cumulants = np.zeros((2, 2, len(_TILTS)))  # direction, sign of the tilt
    extremes = np.zeros((2, 2))  # direction, sign
    for z, q, number in releases:
        outcome = np.linspace(-reach * z, 1 + reach * z, _NODES)
        loss = _loss(outcome, z, q)
        without = -0.5 * (outcome / z) ** 2  # log density, but for a constant
        for way, (values, density) in enumerate(((loss, without + loss), (-loss, without))):
            for side, sign in enumerate((1, -1)):
                tilted = _log_sum(sign * _TILTS[:, None] * values + density)
                cumulants[way, side] += number * (tilted - _log_sum(density))
                extremes[way, side] += number * float((sign * values).max())
    # P(loss > u) <= exp(cumulant(t) - t u) for every tilt t; no loss passes the extremes at all.
    chernoff = ((cumulants - math.log(DROPPED)) / _TILTS).min(axis=2)
    highest = np.minimum(chernoff, extremes)
    return [(-float(low), float(high)) for high, low in highest]


def _log_sum(logarithms: Floats) -> Floats:
    greatest = logarithms.max(axis=-1, keepdims=True)
    total: Floats = greatest[..., 0] + np.log(np.exp(logarithms - greatest).sum(axis=-1))
    return total


def _loss(outcome: Floats, z: float, q: float) -> Floats:
    shifted = (outcome - 0.5) / z**2
    if q == 1:
        return shifted
    return np.logaddexp(math.log1p(-q), math.log(q) + shifted)


def _outcome(loss: Floats, z: float, q: float) -> Floats:
    """Where the loss has these values; minus infinity below the least there is, log(1 - q)."""
    if q == 1:
        return 0.5 + z**2 * loss
    falling, rising = np.minimum(loss, 0), np.maximum(loss, 0)
    with np.errstate(divide="ignore"):
        low = np.log(np.maximum(q + np.expm1(falling), 0))
    high = rising + np.log1p((q - 1) * np.exp(-rising))
    return 0.5 + z**2 * (np.where(loss > 0, high, low) - math.log(q))


def _cells(part: Releases, reach: float, step: float) -> tuple[int, Floats, Floats]:
    """The number of the first grid point, and the masses (N,) of one release under P and under Q.

    Both are of the patient's loss with the patient removed.
    """
    z, q, _ = part
    least, most = _loss(np.array([-reach * z, 1 + reach * z]), z, q) / step
    first = math.floor(least)
    losses = np.arange(first, math.ceil(most) + 1) * step
    cuts = _outcome(losses, z, q)
    without = _between(cuts / z)
    with_it = (1 - q) * without + q * _between((cuts - 1) / z)
    # Within a cell P / Q lies between exp(low) and exp(high): what is above exp(low) says how much
    # belongs to the upper end. A cell lighter than any float counts as all the way up.
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.exp(np.log(with_it) - np.log(without) - losses[:-1])
    ratio = np.clip(np.nan_to_num(ratio, nan=math.inf), 1, math.exp(step))
    to_upper = (1 - 1 / ratio) / -math.expm1(-step)
    return first, _split(with_it, to_upper), _split(without, to_upper * ratio * math.exp(-step))


def _split(cells: Floats, to_upper: Floats) -> Floats:
    """Masses (N + 1,) at the ends of N cells, of each of which a share goes to the upper end."""
    masses = np.append(cells * (1 - to_upper), 0.0)
    masses[1:] += cells * to_upper
    return masses


def _between(cuts: Floats) -> Floats:
    """Standard normal probability between neighbouring ``cuts``, precise in both tails."""
    scaled = np.abs(cuts) * math.sqrt(0.5)
    tails = 0.5 * np.fromiter(map(math.erfc, scaled.tolist()), np.float64, len(cuts))
    left, right = cuts[:-1] < 0, cuts[1:] >= 0
    straddling = 1 - tails[:-1] - tails[1:]
    return np.where(left & right, straddling, np.abs(np.diff(tails)))
