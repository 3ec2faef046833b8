"""What the aggregator accepts from a site: right in form, finite, bounded, to the question."""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.bounds import within_bounds
from shared.contract import RunContract
from shared.frozen import Frozen
from shared.judging import (
    PSNR_STEP_DB,
    SSIM_STEP,
    EvaluateHeader,
    EvaluationHeader,
    VetoHeader,
    VetoQueryHeader,
    in_steps,
)
from shared.masking import Ring, is_genuine
from shared.messages import (
    MAX_PATIENTS,
    DryRunHeader,
    DryRunQueryHeader,
    FloatArray,
    KeyOfferHeader,
    KeyQueryHeader,
    MessageError,
    Offer,
    OpeningHeader,
    OpenQueryHeader,
    ProbeHeader,
    RefusalHeader,
    StatusHeader,
    SummaryHeader,
    decode,
    patient_bucket,
    values_shape,
)

Answer = TypeVar(
    "Answer",
    SummaryHeader,
    KeyOfferHeader,
    OpeningHeader,
    DryRunHeader,
    StatusHeader,
    EvaluationHeader,
    VetoHeader,
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
    audit_head: str | None
    """Head of the site's audit log: the hospital can be shown later what it was."""


def admit(
    payload: bytes, *, site: str, request: ProbeHeader, request_digest: str, weights: FloatArray
) -> Admitted:
    """Checks a site's answer to a request with ``weights`` (K, D).

    Raises ``Rejected`` naming the check that failed, or the site's own refusal code.
    """
    header, values = _summary(
        payload, "values", site=site, request=request, request_digest=request_digest
    )
    patients = len(values) if values.ndim else 0
    if values.shape != values_shape(request, weights.shape, patients=patients):
        raise Rejected("values do not have the shape of the request")
    if values.ndim == 3:
        least, most = request.contract.min_patients, MAX_PATIENTS
        if request.contract.privacy.epsilon is not None:
            least = most = request.contract.privacy.patients
        if not least <= patients <= most:
            raise Rejected("not as many patients as the contract and the format allow")
    if header.patients_at_least != _told(request.contract, header, values):
        raise Rejected("another number of patients than it says, or than it should say")
    if not np.isfinite(values).all():
        raise Rejected("values are not finite")
    if not within_bounds(values, request.contract, request.kind):
        raise Rejected("values exceed the contract's clipping norm")
    return Admitted(
        values=values,
        patients_at_least=header.patients_at_least,
        seconds=header.seconds,
        audit_head=header.audit_head,
    )


def _told(contract: RunContract, header: SummaryHeader, values: FloatArray) -> int:
    """How many patients an honest answer says it is of: with noise, no more than the least."""
    if contract.privacy.epsilon is not None:
        return patient_bucket(contract.min_patients)
    return patient_bucket(len(values)) if values.ndim == 3 else header.patients_at_least


@dataclass(frozen=True)
class Masked:
    """An answer that may be added up."""

    numbers: Ring  # (K * R + 1,)
    seconds: float
    """Time the site says its worker spent."""
    audit_head: str | None
    """Head of the site's audit log."""


def admit_masked(
    payload: bytes, *, site: str, request: ProbeHeader, request_digest: str, count: int
) -> Masked:
    """Checks a site's answer to a request of a secure sum: all of it that can be seen.

    Raises ``Rejected``.
    """
    header, numbers = _summary(
        payload, "masked", site=site, request=request, request_digest=request_digest
    )
    if numbers.shape != (count,):
        raise Rejected("not as many numbers as the request asks for")
    return Masked(numbers=numbers, seconds=header.seconds, audit_head=header.audit_head)


def admit_offer(payload: bytes, *, site: str, query: KeyQueryHeader) -> Offer:
    """Checks that a site offers a key for this attempt, signed by itself; raises ``Rejected``."""
    header, _ = _answer(payload, KeyOfferHeader)
    _refuse_others(
        header,
        contract_digest=query.contract_digest,
        round=query.round,
        attempt=query.attempt,
    )
    (key,) = [one.signing_key for one in query.contract.members if one.name == site]
    if header.offer.name != site or not is_genuine(
        header.offer,
        key,
        contract_digest=query.contract_digest,
        round=query.round,
        attempt=query.attempt,
    ):
        raise Rejected("an offer that this site has not signed")
    return header.offer


def admit_opening(payload: bytes, *, site: str, query: OpenQueryHeader) -> bytes:
    """The seed of a site's own mask; raises ``Rejected``."""
    header, _ = _answer(payload, OpeningHeader)
    _refuse_others(
        header,
        site=site,
        contract_digest=query.contract_digest,
        round=query.round,
        attempt=query.attempt,
    )
    return bytes.fromhex(header.seed)


def admit_dry_run(payload: bytes, *, site: str, query: DryRunQueryHeader) -> DryRunHeader:
    """Whether a site would answer a contract, in its own words; raises ``Rejected``."""
    header, _ = _answer(payload, DryRunHeader)
    _refuse_others(header, site=site, contract_digest=query.contract_digest)
    return header


def admit_evaluation(
    payload: bytes, *, site: str, query: EvaluateHeader, request_digest: str, networks: int
) -> EvaluationHeader:
    """A site's figures of so many ``networks``, the input among them; raises ``Rejected``."""
    header, _ = _answer(payload, EvaluationHeader)
    _refuse_others(
        header, site=site, contract_digest=query.contract_digest, request_digest=request_digest
    )
    if len(header.psnr_db) != networks or len(header.ssim) != networks:
        raise Rejected("not as many figures as networks")
    for values, step in ((header.psnr_db, PSNR_STEP_DB), (header.ssim, SSIM_STEP)):
        if any(value != in_steps(value, step) for value in values):
            raise Rejected("figures finer than the steps that are told")
    if header.patients_at_least != patient_bucket(header.patients_at_least):
        raise Rejected("a number of patients that is no bucket")
    return header


def admit_veto(
    payload: bytes, *, site: str, query: VetoQueryHeader, request_digest: str, images: int
) -> VetoHeader:
    """A site's verdict on so many ``images``; raises ``Rejected``."""
    header, _ = _answer(payload, VetoHeader)
    _refuse_others(
        header, site=site, contract_digest=query.contract_digest, request_digest=request_digest
    )
    if list(header.too_alike) != sorted({one for one in header.too_alike if one < images}):
        raise Rejected("objections to images that it was not sent")
    if header.passed and header.too_alike:
        raise Rejected("a verdict that contradicts itself")
    return header


def admit_presence(payload: bytes, *, site: str) -> None:
    """Checks that a site's worker answers a roll call; raises ``Rejected``."""
    header, _ = _answer(payload, StatusHeader)
    _refuse_others(header, site=site)


def _summary(
    payload: bytes, name: str, *, site: str, request: ProbeHeader, request_digest: str
) -> tuple[SummaryHeader, NDArray[Any]]:
    """A summary of this request, and its one array, of that name."""
    header, arrays = _answer(payload, SummaryHeader)
    _refuse_others(
        header,
        site=site,
        contract_digest=request.contract_digest,
        request_digest=request_digest,
        round=request.round,
        attempt=request.attempt,
        kind=request.kind,
    )
    if header.patients_at_least < patient_bucket(request.contract.min_patients):
        raise Rejected("fewer patients than the contract's minimum")
    if set(arrays) != {name}:
        raise Rejected(f"not one array, of {name}")
    return header, arrays[name]


def _answer(payload: bytes, kind: type[Answer]) -> tuple[Answer, dict[str, NDArray[Any]]]:
    try:
        message = decode(payload)
    except MessageError:
        raise Rejected("not a message of ours") from None
    header = message.header
    if isinstance(header, RefusalHeader):
        raise Rejected(f"refused: {header.code} (incident {header.incident})")
    if not isinstance(header, kind):
        wanted = kind.model_fields["type"].default
        raise Rejected(f"{header.type} in place of {wanted}")
    return header, message.arrays


def _refuse_others(header: Frozen, **expected: object) -> None:
    for field, value in expected.items():
        if getattr(header, field) != value:
            raise Rejected(f"{field} is not that of the request")
