"""Who stands behind a contract: a coordinator's Ed25519 signature of its digest.

Signed is ``fedstill contract v1``, a zero byte and the 32 bytes of the digest, so that a signature
made for anything else is none here. It holds for one contract as it was agreed on to the last bit,
members and public directions included, and for every request under it.
"""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field

from shared.contract import Hex32
from shared.frozen import Frozen
from shared.release.keys import is_signature

_DOMAIN = b"fedstill contract v1\0"


class Mandate(Frozen):
    """A coordinator's signature of a contract's digest."""

    coordinator: Hex32 = Field(description="Ed25519 public key")
    signature: str = Field(pattern=r"^[0-9a-f]{128}$", description="Ed25519")

    def covers(self, contract_digest: str) -> bool:
        """Whether the coordinator has signed the contract of this digest."""
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.coordinator))
        except ValueError:  # no point of the curve
            return False
        return is_signature(key, bytes.fromhex(self.signature), _signed(contract_digest))


def sign_contract(contract_digest: str, key: Ed25519PrivateKey) -> Mandate:
    """The mandate of the owner of ``key`` for the contract of this digest: always the same one."""
    return Mandate(
        coordinator=key.public_key().public_bytes_raw().hex(),
        signature=key.sign(_signed(contract_digest)).hex(),
    )


def _signed(contract_digest: str) -> bytes:
    return _DOMAIN + bytes.fromhex(contract_digest)
