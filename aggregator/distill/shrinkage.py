"""Noise that is known to be there, taken out of what was received: it costs no privacy.

The positive-part estimator of James and Stein (Baranchik, 1964): of M numbers with independent
noise of variance s^2 each, x max(0, 1 - (M - 2) s^2 / |x|^2) is nearer to the truth than x on
average, whatever the truth is, from M = 3 on.
"""

import math

from torch import Tensor

from shared.contract import Kind, RunContract


def shrunk(values: Tensor, *, deviation: float) -> Tensor:
    """``values`` of any shape, whose noise has that standard deviation, drawn towards zero."""
    excess = (values.numel() - 2) * deviation**2
    power = float(values.double().square().sum())
    if excess <= 0 or power == 0:
        return values
    return values * max(0.0, 1 - excess / power)


def noise_deviation(contract: RunContract, kind: Kind, *, rows: int, sites: int) -> float:
    """Standard deviation of the noise in the mean of so many sites' sums; 0 where there is none.

    Distributed noise is taken to be that of all members: if fewer add theirs, there is less.
    """
    multiplier, privacy = contract.noise_multiplier, contract.privacy
    if multiplier is None:
        return 0.0
    variance = sites * (multiplier * contract.patient_bound(kind, rows=rows)) ** 2
    if privacy.noise == "distributed":
        variance /= max(1, math.floor(privacy.honest * sites))
    return math.sqrt(variance) / (privacy.patients * privacy.sampling * sites)
