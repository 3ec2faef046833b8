"""The head of a dataset: the server's signed, expiring word on which version is the newest.

A release verifies by itself and for ever; what it cannot say is that there is no newer one, or that
it was withdrawn. The head says so. It is signed by an online key that the key list names, so it can
be made afresh every day while the release key stays offline, and a copy of an old one is refused
once it has expired.
"""

import base64
import binascii
import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from pydantic import Field, ValidationError

from shared.frozen import Frozen, Slug, canonical_json, explain
from shared.release.errors import (
    FrozenError,
    SwappedVersionError,
    TamperedSignatureError,
)
from shared.release.keys import is_signature

HEAD = "head"
CLOCK_TOLERANCE = timedelta(minutes=10)
"""How far a head may seem to come from the future."""

Moment = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Head(Frozen):
    """What there is of a dataset, at a moment."""

    format: Literal["fedstill-head/1"] = "fedstill-head/1"
    namespace: Slug
    name: Slug
    sequence: int = Field(ge=0, lt=2**53, description="grows with each version and withdrawal")
    number: int = Field(ge=0, lt=2**31, description="the newest version; 0 where all are withdrawn")
    manifest_sha256: Sha256 | None = Field(description="its digest")
    withdrawn: tuple[int, ...] = Field((), max_length=100_000)
    issued_at: Moment
    expires_at: Moment


class SignedHead(Frozen):
    """What the server answers."""

    head: Head
    signature: str = Field(max_length=128, description="base64 of 64 bytes")


def moment(when: datetime) -> str:
    """UTC to the second, as heads write it."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def sign_head(head: Head, key: Ed25519PrivateKey) -> SignedHead:
    """Signs a head."""
    signature = key.sign(canonical_json(head.model_dump(mode="json")))
    return SignedHead(head=head, signature=base64.b64encode(signature).decode("ascii"))


def read_head(
    content: bytes, *, namespace: str, name: str, key: Ed25519PublicKey, now: datetime
) -> Head:
    """The head of that dataset, signed by ``key`` and still good at ``now``.

    Raises ``TamperedSignatureError``, ``SwappedVersionError`` or ``FrozenError``.
    """
    try:
        signed = SignedHead.model_validate(json.loads(content))
        signature = base64.b64decode(signed.signature, validate=True)
        issued = datetime.fromisoformat(signed.head.issued_at)
        expires = datetime.fromisoformat(signed.head.expires_at)
    except ValidationError as error:
        raise TamperedSignatureError(HEAD, f"is not a signed head ({explain(error)})") from None
    except (ValueError, RecursionError, binascii.Error):
        raise TamperedSignatureError(HEAD, "is not a signed head") from None
    head = signed.head
    if not is_signature(key, signature, canonical_json(head.model_dump(mode="json"))):
        raise TamperedSignatureError(HEAD, "is not signed by the publisher's head key")
    if (head.namespace, head.name) != (namespace, name):
        raise SwappedVersionError(
            HEAD, f"is of {head.namespace}/{head.name}, not of {namespace}/{name}"
        )
    if now > expires:
        raise FrozenError(
            HEAD,
            f"expired at {head.expires_at}: the server may be hiding newer versions",
            f"check this machine's clock ({moment(now)}), then tell the publisher",
        )
    if issued > now + CLOCK_TOLERANCE:
        raise FrozenError(
            HEAD,
            f"is dated {head.issued_at}, in the future",
            f"check this machine's clock ({moment(now)}), then tell the publisher",
        )
    return head
