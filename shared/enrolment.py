"""What a hospital and the aggregator hand each other once: an enrolment one way, a kit the other.

Neither holds a secret. The kit names the enrolment it answers by its digest: one for another site,
or for a key that has been exchanged since, is told from one's own.
"""

import hashlib
from typing import Annotated, Literal

from pydantic import Field

from shared.contract import Hex32
from shared.frozen import Frozen, Slug, canonical_json

Address = Annotated[str, Field(pattern=r"^(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:]+\]):[0-9]{1,5}$")]
"""HOST:PORT; an IPv6 host in brackets."""

MAX_COORDINATORS = 32
"""Whose keys a kit and a policy can hold."""
MAX_BYTES = 64 * 1024
"""Of either file: what is larger is something else."""


class Enrolment(Frozen):
    """``enrolment.json`` of a site: public parts only."""

    version: Literal[1] = 1
    name: Slug
    flower_public_key: str = Field(
        max_length=1024, description="OpenSSH line of the site's ECDSA P-384 public key"
    )
    signing_public_key: Hex32 | None = Field(
        None, description="Ed25519, of secure sums; earlier versions have none"
    )

    def digest(self) -> str:
        """SHA-256 (hex) of the content, whatever its spaces and the key's comment."""
        document = self.model_dump(mode="json", exclude_none=True)
        document["flower_public_key"] = " ".join(self.key_fields())
        return hashlib.sha256(canonical_json(document)).hexdigest()

    def key_fields(self) -> list[str]:
        """Kind and value of the Flower key, without its comment."""
        return self.flower_public_key.split()[:2]


class Kit(Frozen):
    """``NAME.kit.json``: what a site needs to know of the aggregator that took it in."""

    version: Literal[1] = 1
    site: Slug
    enrolment: Hex32 = Field(description="digest of the enrolment that this answers")
    aggregator: Address = Field(description="where the site connects to")
    ca: str = Field(
        max_length=16 * 1024, description="the certificate that vouches for the aggregator, PEM"
    )
    release_key: Hex32 = Field(description="fingerprint of the key that signs releases")
    coordinators: tuple[Hex32, ...] = Field(
        max_length=MAX_COORDINATORS, description="Ed25519 public keys that sign contracts"
    )
