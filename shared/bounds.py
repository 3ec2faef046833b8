"""How large an honest answer can be: what a site checks before it sends, the aggregator before use.

A row of a clear mean is no longer than a patient's clipped row. Reduced rows are clipped together,
so it is all that one patient adds that is bounded.
"""

import numpy as np

from shared.contract import Kind, RunContract
from shared.messages import FloatArray

TOLERANCE = 1.001
"""Room for the rounding of float32."""


def within_bounds(
    values: FloatArray,
    contract: RunContract,
    kind: Kind,
) -> bool:
    """Whether no part of finite ``values`` (..., K, R) is longer than an honest one can be."""
    wide = values.astype(np.float64)
    if not contract.reduced_to(kind):
        limit, norms = contract.row_bound(kind), np.linalg.norm(wide, axis=-1)
    else:
        limit = contract.patient_bound(kind, rows=values.shape[-2])
        norms = np.linalg.norm(wide, axis=(-2, -1))
    return bool(norms.max() <= limit * TOLERANCE)
