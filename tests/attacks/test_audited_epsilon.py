"""A membership game against the mechanism itself: no distinguisher may beat the claimed epsilon.

The attacker knows every other patient, has chosen the one in question so that it moves the sum as
far as any can, sees all releases of a run and plays the likelihood ratio, the best test there is.
Its rates of error give a lower bound of epsilon (Clopper and Pearson's intervals; Jagielski et al.,
arXiv 2006.07709). The control, a quarter of the noise, must be caught.
"""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta

from shared.contract import Anchor, Privacy, Probes, RunContract
from shared.gradients import patient_sum
from site_agent.noise import noised

TRIALS = 40_000
CONFIDENCE = 0.999
SIZE = 8
BOUND = 0.05


def run(*, epsilon, rounds, sampling):
    return RunContract(
        name="audit",
        probes=Probes(requests=0),
        anchor=Anchor(rounds=rounds, descent="patient", clip_norm=BOUND),
        privacy=Privacy(epsilon=epsilon, sampling=sampling),
    )


def releases(contract, *, member, noise_multiplier):
    """What left, less what the attacker knows of the others: (TRIALS, rounds, SIZE)."""
    generator = torch.Generator().manual_seed(3)
    others = [torch.randn(1, SIZE, generator=generator) * 0.1 for _ in range(12)]
    # Far longer than may be, and all in one direction.
    patient = torch.full((1, SIZE), 1e6)
    without = patient_sum(others, bound=BOUND).flatten().numpy()
    with_it = patient_sum([*others, patient], bound=BOUND).flatten().numpy()
    sums = np.broadcast_to(without, (TRIALS, contract.rounds, SIZE)).copy()
    if member:
        chance = np.random.default_rng(5).random((TRIALS, contract.rounds))
        sums[chance < contract.privacy.sampling] = with_it
    return noised(sums, deviation=noise_multiplier * BOUND) - without


def score(left, *, contract, noise_multiplier):
    """Log likelihood ratio of a run's releases, with the patient over without: (TRIALS,)."""
    direction = np.full(SIZE, 1 / math.sqrt(SIZE))
    seen = left @ direction / BOUND
    z, q = noise_multiplier, contract.privacy.sampling
    return np.log1p(q * np.expm1((seen - 0.5) / z**2)).sum(axis=1)


def lower_bound(hits, misses, *, delta):
    """Epsilon that these scores, with the patient and without, prove at ``CONFIDENCE``."""
    half = TRIALS // 2
    levels = np.concatenate([hits[:half], misses[:half]])
    # The cut is chosen on one half of the games, and judged on the other.
    best = max(
        np.quantile(levels, np.linspace(0.001, 0.999, 400)),
        key=lambda cut: _proved(hits[:half], misses[:half], cut, delta),
    )
    return _proved(hits[half:], misses[half:], best, delta)


def _proved(hits, misses, cut, delta):
    caught, alarms = int((hits > cut).sum()), int((misses > cut).sum())
    n = len(hits)
    found = 0.0
    for right, wrong in ((caught, alarms), (n - alarms, n - caught)):
        risk = (1 - CONFIDENCE) / 4
        least = beta.ppf(risk, right, n - right + 1) if right else 0.0
        most = beta.ppf(1 - risk, wrong + 1, n - wrong) if wrong < n else 1.0
        if least > delta:
            found = max(found, math.log((least - delta) / most))
    return found


@pytest.mark.parametrize(
    ("epsilon", "rounds", "sampling"), [(1.0, 1, 1.0), (3.0, 4, 1.0), (3.0, 4, 0.5)]
)
def test_no_distinguisher_proves_more_than_was_claimed(epsilon, rounds, sampling):
    contract = run(epsilon=epsilon, rounds=rounds, sampling=sampling)
    z = contract.noise_multiplier

    def audited(actual):
        scores = [
            score(
                releases(contract, member=member, noise_multiplier=actual),
                contract=contract,
                noise_multiplier=actual,
            )
            for member in (True, False)
        ]
        return lower_bound(*scores, delta=contract.privacy.delta)

    honest, control = audited(z), audited(z / 4)
    print(f"claimed {epsilon}: audited at least {honest:.2f}, a quarter of the noise {control:.2f}")
    # The game has teeth: it proves a good part of the claim, and more than it of weaker noise.
    assert 0.2 * epsilon < honest <= epsilon
    assert control > epsilon
