"""Noise that is known to be there, taken out of what was received: it costs no privacy.

Of M numbers with independent noise of variance s^2 each, x max(0, 1 - (M - 2) s^2 / |x|^2) is
nearer to the truth than x on average, whatever the truth is, from M = 3 on: the positive-part
estimator of James and Stein (Baranchik, 1964). Where public images say along which coordinates the
truth is long, by a spread v of mean squares, each is drawn in by its own share instead, Wiener's
t v / (t v + s'^2) with s'^2 = s^2 (M - 2) / M; how much longer or shorter than the public ones the
truth is, t = (|x|^2 - M s'^2) / sum v, is found in x (empirical Bayes; Efron and Morris, 1973).
Of a flat spread that is the formula above.
"""

import math

import torch
from torch import Tensor

from shared.contract import Kind, RunContract


def shrunk(values: Tensor, *, deviation: float, spread: Tensor | None = None) -> Tensor:
    """``values`` (1, M), whose noise has that standard deviation, drawn towards zero.

    ``spread`` (M,) are mean squares of what the values may be; without one all are alike.
    """
    count = values.numel()
    noise = deviation**2 * (count - 2) / count
    if noise <= 0:
        return values
    shape = torch.ones(count) if spread is None else spread.cpu().double()
    excess = float(values.double().square().sum()) - count * noise
    expected = max(0.0, excess) / shape.sum() * shape
    return values * (expected / (expected + noise)).to(values)


def noise_deviation(contract: RunContract, kind: Kind, *, rows: int, sites: int) -> float:
    """Standard deviation of the noise in the mean of so many sites' sums; 0 where there is none.

    Distributed noise is taken to be that of all who answered, who each add their share.
    """
    multiplier, privacy = contract.noise_multiplier, contract.privacy
    if multiplier is None:
        return 0.0
    variance = sites * (multiplier * contract.patient_bound(kind, rows=rows)) ** 2
    if privacy.noise == "distributed":
        variance /= max(1, math.floor(privacy.honest * sites))
    return math.sqrt(variance) / (privacy.patients * privacy.sampling * sites)
