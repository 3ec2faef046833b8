"""Figures of attacks with their uncertainty, by patient: people are the sample, not images.

All intervals are the central 95% of a percentile bootstrap over patients (Efron and Tibshirani
1993), so the upper end is one that 97.5% of the resamples stay below.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator.utility import percentile_interval, resampled_means

Floats = NDArray[np.float64]
RESAMPLES = 1000
SEED = 1
FALSE_POSITIVES = 0.1


def mean_of(values: Sequence[float]) -> dict[str, Any]:
    """Mean over patients of one value each, its interval, and the patients' number."""
    resampled = resampled_means({"values": values})["values"]
    return {
        "mean": float(np.mean(values)),
        "interval": percentile_interval(resampled),
        "patients": len(values),
    }


def by_patients(statistic: Callable[[Floats], float], *, patients: int) -> dict[str, Any]:
    """A statistic of weighted patients at weights one, and its interval over resamples of them.

    Where it is not defined it is None.
    """
    random = np.random.default_rng(SEED)
    shares = np.full(patients, 1 / patients)
    drawn = random.multinomial(patients, shares, size=RESAMPLES).astype(np.float64)
    values = np.array([statistic(weights) for weights in drawn])
    values, figure = values[np.isfinite(values)], statistic(np.ones(patients))
    return {
        "mean": figure if np.isfinite(figure) else None,
        "interval": percentile_interval(values) if len(values) else [None, None],
        "patients": patients,
    }


@dataclass(frozen=True)
class Guesses:
    """Scores (T, P) of P people in T trials, higher for those thought to be members; the truth."""

    scores: Floats
    members: NDArray[np.bool_]

    def figures(self) -> dict[str, Any]:
        """The area under the ROC curve, and the members found where one in ten others is too."""
        patients = self.scores.shape[1]
        return {
            "auc": by_patients(self.auc, patients=patients),
            "tpr_at_fpr_10": by_patients(self.found, patients=patients),
        }

    def auc(self, weights: Floats) -> float:
        """Chance that a member scores above another person; ties count half."""
        inside, outside = self._weighted(weights)
        if not inside.sum() * outside.sum():
            return float("nan")
        tied = np.bincount(self._levels, outside)
        above = np.cumsum(tied) - tied / 2  # levels fall, so these are those that score higher
        return float(1 - inside @ above[self._levels] / inside.sum() / outside.sum())

    def found(self, weights: Floats) -> float:
        """Share of members above the score that a tenth of the others exceed."""
        inside, outside = self._weighted(weights)
        if not inside.sum() * outside.sum():
            return float("nan")
        few = np.cumsum(np.bincount(self._levels, outside)) <= FALSE_POSITIVES * outside.sum()
        return float(inside[few[self._levels]].sum() / inside.sum())

    @cached_property
    def _levels(self) -> NDArray[np.intp]:
        """Of each score, how many different ones are higher."""
        levels: NDArray[np.intp] = np.unique(-self.scores.ravel(), return_inverse=True)[1].ravel()
        return levels

    def _weighted(self, weights: Floats) -> tuple[Floats, Floats]:
        """The weights of members' scores, and of the others', zero where it is the other one's."""
        shares = np.broadcast_to(weights, self.scores.shape)
        return (shares * self.members).ravel(), (shares * ~self.members).ravel()


def likelihood_ratios(statistics: Floats, members: NDArray[np.bool_]) -> Floats:
    """Log-likelihood ratios (T, P) of having taken part, each of statistics (T, P) in T trials.

    LiRA (Carlini et al., IEEE S&P 2022), online: each person's statistic has a mean of its own with
    the person and one without, learned in all other trials, and one deviation. A mean of few trials
    is uncertain, and widens its normal distribution; without that, whoever is in few of the other
    trials would look absent. Where the others are all with, or all without, the ratio is 0.
    """
    trials = len(statistics)
    ratios = np.zeros_like(statistics)
    for trial in range(trials):
        others = np.arange(trials) != trial
        known, inside = statistics[others], members[others]
        counts = np.stack([(~inside).sum(axis=0), inside.sum(axis=0)])
        sums = np.stack([(known * ~inside).sum(axis=0), (known * inside).sum(axis=0)])
        means = sums / np.maximum(counts, 1)
        centred = known - np.where(inside, means[1], means[0])
        variance = (centred**2).sum(axis=0) / np.maximum(counts.sum(axis=0) - 2, 1)
        spread = np.maximum(variance, 1e-30) * (1 + 1 / np.maximum(counts, 1))
        logs = -((statistics[trial] - means) ** 2) / (2 * spread) - 0.5 * np.log(spread)
        ratios[trial] = np.where(counts.min(axis=0) > 0, logs[1] - logs[0], 0.0)
    return ratios
