"""What the aggregator accepts from a site: right in form, finite, bounded, to the question."""

from dataclasses import dataclass

import numpy as np

from shared.bounds import within_bounds
from shared.messages import (
    MAX_PATIENTS,
    FloatArray,
    MessageError,
    ProbeHeader,
    RefusalHeader,
    SummaryHeader,
    decode,
    patient_bucket,
    values_shape,
)


class Rejected(ValueError):  # noqa: N818
    """An answer that is not used; the text names the reason and holds nothing the site wrote."""


@dataclass(frozen=True)
class Admitted:
    """An answer that may be banked."""

    values: FloatArray  # (K, R); gradients at granularity patient (P, K, R)
    patients_at_least: int
    seconds: float
    """Time the site says its worker spent."""


def admit(
    payload: bytes, *, site: str, request: ProbeHeader, request_digest: str, weights: FloatArray
) -> Admitted:
    """Checks a site's answer to a request with ``weights`` (K, D).

    Raises ``Rejected`` naming the check that failed, or the site's own refusal code.
    """
    try:
        message = decode(payload)
    except MessageError:
        raise Rejected("not a message of ours") from None
    header = message.header
    if isinstance(header, RefusalHeader):
        raise Rejected(f"refused: {header.code} (incident {header.incident})")
    if not isinstance(header, SummaryHeader):
        raise Rejected(f"a {header.type} in place of a summary")
    expected = {
        "site": site,
        "contract_digest": request.contract_digest,
        "request_digest": request_digest,
        "round": request.round,
        "kind": request.kind,
    }
    for field, value in expected.items():
        if getattr(header, field) != value:
            raise Rejected(f"{field} is not that of the request")
    if header.patients_at_least < patient_bucket(request.contract.min_patients):
        raise Rejected("fewer patients than the contract's minimum")
    values = message.arrays.get("values")
    if set(message.arrays) != {"values"} or values is None:
        raise Rejected("not one array of values")
    patients = len(values) if values.ndim else 0
    if values.shape != values_shape(request, weights.shape, patients=patients):
        raise Rejected("values do not have the shape of the request")
    if values.ndim == 3:
        if not request.contract.min_patients <= patients <= MAX_PATIENTS:
            raise Rejected("not as many patients as the contract and the format allow")
        if header.patients_at_least != patient_bucket(patients):
            raise Rejected("another number of patients than it says")
    if not np.isfinite(values).all():
        raise Rejected("values are not finite")
    if not within_bounds(values, request.contract, request.kind):
        raise Rejected("values exceed the contract's clipping norm")
    return Admitted(
        values=values, patients_at_least=header.patients_at_least, seconds=header.seconds
    )
