"""Messages between aggregator and gradient worker, and their codec.

Wire format: one safetensors file. Its metadata holds one key, ``fedstill``, with the canonical JSON
of the header; its tensors are float32 arrays, or uint64 in a masked summary. No pickle, no code,
no other type can be expressed. numpy alone is needed to read one, so that the Flower client process
stays free of torch.
"""

import hashlib
import json
import struct
from enum import StrEnum
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shared.contract import Hex32, Kind, Name, RunContract
from shared.frozen import Frozen, Slug, canonical_json
from shared.judging import EvaluateHeader, EvaluationHeader, VetoHeader, VetoQueryHeader
from shared.mandate import Mandate
from shared.standing import Standing

FloatArray = NDArray[np.float32]
MAX_BYTES = 256 * 2**20
"""Largest message accepted, bytes."""
MAX_HEADER_BYTES = 1 * 2**20
MAX_PATIENTS = 10_000
"""Most patients in one answer at granularity patient."""
MAX_ATTEMPTS = 3
"""How often a round of a secure sum is tried, each time without the sites that dropped out."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Attempt = Annotated[int, Field(ge=1, le=MAX_ATTEMPTS)]
_ARRAYS = {
    "weights": "f",
    "basis": "f",
    "scales": "f",
    "values": "f",
    "masked": "u",
    "anchor": "f",
    "candidates": "f",
    "replaced": "f",
}
"""Names of arrays and their kinds: float32, or uint64."""


class MessageError(ValueError):
    """Bytes that are not a message of ours; the text never repeats their content."""


class RefusalCode(StrEnum):
    """Why a site did not answer with a summary. The text of an exception never leaves a site."""

    MALFORMED = "malformed"  # not a message of ours
    UNKNOWN_KIND = "unknown-kind"  # a message a site does not answer
    DIGEST_MISMATCH = "digest-mismatch"  # header and contract disagree
    UNKNOWN_COORDINATOR = "unknown-coordinator"  # the contract is signed by nobody the site knows
    POLICY = "policy"  # the site's own limits forbid the contract
    WRONG_MODALITY = "wrong-modality"  # CT asked of a site with MR, or the other way round
    TOO_FEW_PATIENTS = "too-few-patients"
    TOO_FEW_PAIRS = "too-few-pairs"  # real pairs asked of a site where too few patients have some
    TOO_FEW_KEPT_BACK = "too-few-kept-back"  # patients out of the run, whom it is judged on
    BAD_IMAGES = "bad-images"  # candidates of a wrong shape, number, or not finite
    BAD_WEIGHTS = "bad-weights"  # wrong shape, type, or not finite
    BAD_REDUCTION = (
        "bad-reduction"  # basis or scales that are not those of the contract, or no such
    )
    ROUND_REUSED = "round-reused"  # another request under a round already answered
    BAD_MEMBERS = (
        "bad-members"  # of a secure sum: too few, unknown, or a key not signed by its site
    )
    BUDGET_SPENT = "budget-spent"  # the site's privacy budget does not allow it
    TOO_OFTEN = "too-often"  # more requests than the site's policy allows in an hour
    NO_COHORT = "no-cohort"  # nothing indexed yet
    WORKER_UNREACHABLE = "worker-unreachable"
    INTERNAL = "internal"  # see the site's log under the incident id


class Offer(Frozen):
    """A member's fresh X25519 key for one attempt at one round, signed by its long-term key."""

    name: Slug
    public_key: Hex32
    signature: str = Field(pattern=r"^[0-9a-f]{128}$", description="Ed25519")


class ProbeHeader(Frozen):
    """Aggregator to site: gradients at K weights, or the accumulated gradient of E local steps."""

    type: Literal["probe-batch"] = "probe-batch"
    contract: RunContract
    contract_digest: Digest
    mandate: Mandate | None = None
    round: int = Field(ge=1, le=10_000)
    attempt: Attempt = 1
    kind: Kind
    network: Name
    offers: tuple[Offer, ...] = Field(
        (), max_length=64, description="of a secure sum, every member that takes part"
    )


class SummaryHeader(Frozen):
    """Site to aggregator: the answer at the contract's granularity."""

    type: Literal["summary"] = "summary"
    contract_digest: Digest
    request_digest: Digest
    round: int = Field(ge=1, le=10_000)
    attempt: Attempt = 1
    kind: Kind
    site: Slug
    patients_at_least: int = Field(ge=1, description="patients behind it, rounded down to a bucket")
    seconds: float = Field(ge=0, description="time the worker spent; 0 with noise, or in a sum")
    audit_head: Digest | None = Field(
        None, description="hash of the site's audit log, up to the line of this answer"
    )


class RefusalHeader(Frozen):
    """Site to aggregator: no summary, a code, and an incident id to quote to the hospital."""

    type: Literal["refusal"] = "refusal"
    site: Slug
    code: RefusalCode
    incident: str = Field(pattern=r"^[0-9a-f]{12}$")


class KeyQueryHeader(Frozen):
    """Aggregator to site: a fresh key for one attempt at a round of a secure sum."""

    type: Literal["key-query"] = "key-query"
    contract: RunContract
    contract_digest: Digest
    mandate: Mandate | None = None
    round: int = Field(ge=1, le=10_000)
    attempt: Attempt


class KeyOfferHeader(Frozen):
    """Site to aggregator: the key, to be passed on to the other members."""

    type: Literal["key-offer"] = "key-offer"
    contract_digest: Digest
    round: int = Field(ge=1, le=10_000)
    attempt: Attempt
    offer: Offer


class OpenQueryHeader(Frozen):
    """Aggregator to site: every member of this attempt has answered, take your own mask off."""

    type: Literal["open-query"] = "open-query"
    contract_digest: Digest
    round: int = Field(ge=1, le=10_000)
    attempt: Attempt


class OpeningHeader(Frozen):
    """Site to aggregator: the seed of its own mask. A site opens one attempt of a round at most."""

    type: Literal["opening"] = "opening"
    site: Slug
    contract_digest: Digest
    round: int = Field(ge=1, le=10_000)
    attempt: Attempt
    seed: Hex32


class DryRunQueryHeader(Frozen):
    """Aggregator to site: would you answer this contract? It reads and charges nothing."""

    type: Literal["dry-run-query"] = "dry-run-query"
    contract: RunContract
    contract_digest: Digest
    mandate: Mandate | None = None
    standing: bool = Field(
        False,
        description="tell your standing too",
        # A site of an earlier version takes no question that has the field.
        exclude_if=lambda value: not value,
    )


class DryRunHeader(Frozen):
    """Site to aggregator: whether it would, as things stand; else the refusal it would give."""

    type: Literal["dry-run"] = "dry-run"
    site: Slug
    contract_digest: Digest
    code: RefusalCode | None = Field(None, description="of the refusal; none: it would answer")
    incident: str | None = Field(
        None, pattern=r"^[0-9a-f]{12}$", description="under which the site's log has the reason"
    )
    patients_at_least: int = Field(
        ge=0, description="patients who could answer (of real pairs: have some), in buckets"
    )
    standing: Standing | None = Field(
        None,
        description="where the question asks for it, signed by a coordinator whom the site knows",
        exclude_if=lambda value: value is None,
    )


class StatusQueryHeader(Frozen):
    """Local question to the worker: are you ready?"""

    type: Literal["status-query"] = "status-query"


class StatusHeader(Frozen):
    """The worker's answer: what it would work with. Carries no identifier."""

    type: Literal["status"] = "status"
    site: Slug
    version: str
    device: str
    ready: bool
    patients_at_least: int = Field(ge=0)
    answered: int = Field(ge=0, description="requests answered with a summary so far")


Header = (
    ProbeHeader
    | SummaryHeader
    | RefusalHeader
    | KeyQueryHeader
    | KeyOfferHeader
    | OpenQueryHeader
    | OpeningHeader
    | EvaluateHeader
    | EvaluationHeader
    | VetoQueryHeader
    | VetoHeader
    | DryRunQueryHeader
    | DryRunHeader
    | StatusQueryHeader
    | StatusHeader
)
_HEADER: TypeAdapter[Header] = TypeAdapter(Annotated[Header, Field(discriminator="type")])


class Message(Frozen):
    """A header and its arrays.

    ``probe-batch`` carries ``weights`` (K, D); ``summary`` carries ``values`` (K, R), row k the
    cohort's mean gradient at ``weights[k]``, or with local steps the descent
    ``weights - weights after E steps``. At granularity patient, gradients are (P, K, R), a block a
    patient, in an order that is the same in all rounds of a contract and tells nothing else.

    R is D, or as many numbers as the contract reduces a row to: a request for descents then carries
    ``basis`` (R, D), one for gradients ``scales`` (K, L), a divisor a layer. At granularity
    federation a summary carries ``masked`` (K * R + 1,) uint64 in place of values: fixed-point
    numbers under masks, the last of them the site's weight.

    ``evaluate`` carries ``weights`` (K, D) of students and, where the contract has one, ``anchor``
    (1, D') of the anchor network; ``veto-query`` carries ``candidates`` and ``replaced``, both
    (N, 1, S, S) in window units. The other messages carry nothing.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    header: Annotated[Header, Field(discriminator="type")]
    arrays: dict[str, Any] = Field(default_factory=dict)


PATIENT_BUCKETS = (0, 1, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


def patient_bucket(patients: int) -> int:
    """The largest bucket not above ``patients``: exact counts never leave a site."""
    return max(bucket for bucket in PATIENT_BUCKETS if bucket <= max(patients, 0))


def encode(message: Message) -> bytes:
    """Serialises a message.

    Raises ``MessageError`` where an array is not float32, or the result would be too large.
    """
    arrays = {}
    for name, array in message.arrays.items():
        wanted = np.uint64 if _ARRAYS.get(name) == "u" else np.float32
        if array.dtype != wanted:
            raise MessageError(f"array {name} is {array.dtype}, not {np.dtype(wanted)}")
        arrays[name] = np.ascontiguousarray(array)
    header = canonical_json(message.header.model_dump(mode="json")).decode("utf-8")
    payload = save(arrays, metadata={"fedstill": header})
    if len(payload) > MAX_BYTES:
        raise MessageError(f"message of {len(payload)} bytes exceeds {MAX_BYTES}")
    return payload


def decode(payload: bytes) -> Message:
    """Reads a message.

    Raises ``MessageError`` on anything that is not one; never repeats what it read.
    """
    if len(payload) > MAX_BYTES:
        raise MessageError(f"message of {len(payload)} bytes exceeds {MAX_BYTES}")
    header = _read_header(payload)
    try:
        arrays = load(payload)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError):
        raise MessageError("tensors are malformed") from None
    for name, array in arrays.items():
        wanted = np.uint64 if _ARRAYS.get(name) == "u" else np.float32
        if name not in _ARRAYS or array.dtype != wanted:
            raise MessageError("an array has an unknown name or type")
    return Message(header=header, arrays=dict(arrays))


def _read_header(payload: bytes) -> Header:
    if len(payload) < 8:
        raise MessageError("message is truncated")
    (length,) = struct.unpack("<Q", payload[:8])
    if length > min(MAX_HEADER_BYTES, len(payload) - 8):
        raise MessageError("header is truncated or too large")
    try:
        document = json.loads(payload[8 : 8 + length])
        return _HEADER.validate_json(document["__metadata__"]["fedstill"])
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError):
        raise MessageError("header is malformed") from None


def payload_digest(payload: bytes) -> str:
    """SHA-256 (hex) of an encoded message."""
    return hashlib.sha256(payload).hexdigest()


def values_shape(
    request: ProbeHeader, weights: tuple[int, ...], *, patients: int
) -> tuple[int, ...]:
    """The shape of an honest answer to ``weights`` (K, D), from so many patients."""
    rows = (weights[0], request.contract.reduced_to(request.kind) or weights[1])
    by_patient = request.kind == "gradients" and request.contract.granularity == "patient"
    return (patients, *rows) if by_patient else rows


def probe_batch(
    *,
    contract: RunContract,
    round: int,
    kind: Kind,
    network: Name,
    weights: FloatArray,
    basis: FloatArray | None = None,
    scales: FloatArray | None = None,
    mandate: Mandate | None = None,
) -> Message:
    """A request for ``weights`` (K, D), and what the contract reduces its answers with, if it does.

    ``basis`` (R, D) goes with descents, ``scales`` (K, L) with gradients.
    """
    header = ProbeHeader(
        contract=contract,
        contract_digest=contract.digest(),
        mandate=mandate,
        round=round,
        kind=kind,
        network=network,
    )
    arrays = {"weights": weights, "basis": basis, "scales": scales}
    return Message(
        header=header, arrays={name: one for name, one in arrays.items() if one is not None}
    )


def refusal(*, site: str, code: RefusalCode, incident: str) -> Message:
    """A typed refusal."""
    return Message(header=RefusalHeader(site=site, code=code, incident=incident))
