"""How large an honest answer can be: what a site checks before it sends, the aggregator before use.

- A row of a clear mean is no longer than a patient's clipped row. Reduced rows are clipped
  together, so it is all that one patient adds that is bounded, by C.
- A noised sum is divided by its weight n0 q, and before the noise it is no longer than n0 q C:
  sites see to that. Gaussian noise of standard deviation s on M numbers is longer than
  s (sqrt(M) + t) with a probability below exp(-t^2 / 2): a norm changes no faster than the noise
  does (Boucheron, Lugosi and Massart, *Concentration Inequalities*, theorem 5.6).
"""

import math

import numpy as np

from shared.contract import Kind, RunContract
from shared.messages import FloatArray

TOLERANCE = 1.001
"""Room for the rounding of float32, and of noised numbers to their grid."""
TAIL = 9.0
"""t: an honest answer is taken for a dishonest one once in 10^17."""


def within_bounds(
    values: FloatArray, contract: RunContract, kind: Kind, *, members: int = 1
) -> bool:
    """Whether no part of finite ``values`` (..., K, R) is longer than an honest one can be.

    Values are a site's, or the mean of a secure sum of so many ``members``.
    """
    rows, length = values.shape[-2:]
    by_patient = values.ndim == 3
    wide = values.astype(np.float64)
    if contract.noise_multiplier is None and not contract.reduced_to(kind):
        limit, norms = contract.row_bound(kind), np.linalg.norm(wide, axis=-1)
    else:
        limit = block_bound(
            contract, kind, rows=rows, length=length, by_patient=by_patient, members=members
        )
        norms = np.linalg.norm(wide, axis=(-2, -1))
    return bool(norms.max() <= limit * TOLERANCE)


def block_bound(
    contract: RunContract,
    kind: Kind,
    *,
    rows: int,
    length: int,
    by_patient: bool = False,
    members: int = 1,
) -> float:
    """The largest L2 norm of an honest block (K, R): a site's, a patient's, or a secure sum's mean.

    The sum is of so many ``members``, each with noise that would do for a site alone.
    """
    bound, privacy = contract.patient_bound(kind, rows=rows), contract.privacy
    multiplier = contract.noise_multiplier
    if multiplier is None:
        return bound
    noise = multiplier * bound * (math.sqrt(rows * length) + TAIL)
    if by_patient:
        return (bound + noise) / privacy.sampling
    return bound + noise / (privacy.patients * privacy.sampling * math.sqrt(members))
