"""Masks of a secure sum: numbers that tell nothing one by one, and add up to the sum.

After Bonawitz et al., "Practical Secure Aggregation" (CCS 2017), with their double masking and
without their secret sharing (docs/decisions/0007-own-secure-sum.md). Of a site's numbers x:

1. fixed point: round(x / step) mod 2^64; the step is so coarse that no sum can wrap;
2. each pair of members agrees on a key by X25519; the member whose name comes first adds the key's
   ChaCha20 stream, the other subtracts it, so that in the sum of all members they cancel;
3. on top lies the site's own mask, the stream of a seed that it gives away once, in the end: an
   answer that comes late, to a sum that was given up, stays masked for ever.

Every key is derived for one request of one attempt among named members. The request's digest is in
it: members that were not asked the very same thing add up to noise.

Pure: numpy and ``cryptography``, no file and no clock.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from shared.contract import Hex32, Kind, RunContract
from shared.frozen import Frozen, Slug, canonical_json
from shared.messages import MAX_PATIENTS, Attempt, Offer, ProbeHeader
from shared.release.keys import is_signature

MIN_MEMBERS = 3
"""Of two, each would know the other's numbers from the sum."""
SEED_BYTES = 32
_NOISE_WIDTHS = 16.0
"""Standard deviations that no draw of a Gaussian ever leaves (one in 10^57)."""

FloatArray = NDArray[np.float64]
Ring = NDArray[np.uint64]
"""Integers mod 2^64."""


class Session(Frozen):
    """What masks are bound to: one request, in one attempt at a round, among these members."""

    contract_digest: Hex32
    round: int
    attempt: Attempt
    kind: Kind
    request_digest: Hex32
    participants: tuple[Slug, ...]
    """Sorted names."""

    @classmethod
    def of(cls, request: ProbeHeader, request_digest: str) -> "Session":
        """The session of an encoded request that carries its members' offers."""
        return cls(
            contract_digest=request.contract_digest,
            round=request.round,
            attempt=request.attempt,
            kind=request.kind,
            request_digest=request_digest,
            participants=tuple(sorted(offer.name for offer in request.offers)),
        )

    def key(self, secret: bytes, *names: str) -> bytes:
        """32 bytes that follow from the secret, this session and the names."""
        purpose = {"purpose": "fedstill mask 1", "names": list(names)}
        info = canonical_json({**self.model_dump(mode="json"), **purpose})
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)


def step_of(*, members: int, bound: float) -> float:
    """The step, a power of two, at which the sum of so many numbers cannot leave 63 bits.

    Each is of absolute value at most ``bound``. Raises ``OverflowError`` where there is no step.
    """
    _, exponent = math.frexp(members * bound)
    # At most 2^62 steps, and half a step a member for rounding.
    step = math.ldexp(1.0, exponent - 62) if math.isfinite(bound) and bound > 0 else 0.0
    if not 1 <= members < 2**32 or step == 0.0:
        raise OverflowError(f"no fixed point for {members} members and the bound {bound}")
    return step


def encode_fixed(values: FloatArray, *, step: float) -> Ring:
    """Rounded multiples of ``step``, mod 2^64; ``OverflowError`` where 63 bits do not hold them."""
    multiples = np.rint(values / step)
    if not bool((np.abs(multiples) < 2.0**63).all()):  # NaN is not below either
        raise OverflowError("a number is not finite, or too large for its fixed point")
    return multiples.astype(np.int64).view(np.uint64)


def decode_fixed(numbers: Ring, *, step: float) -> FloatArray:
    """The signed multiples of ``step``."""
    return numbers.view(np.int64).astype(np.float64) * step


def coordinate_bound(contract: RunContract, kind: Kind, *, rows: int) -> float:
    """What no coordinate of an honest numerator of so many rows exceeds.

    All patients that a site can speak for pull one way, and noise is at its widest.
    """
    noise = contract.noise_multiplier or 0.0
    return contract.patient_bound(kind, rows=rows) * (MAX_PATIENTS + _NOISE_WIDTHS * noise)


def encode_contribution(
    numerator: FloatArray, weight: float, *, members: int, bound: float
) -> Ring:
    """A site's (M,) numbers and, last, its weight: (M + 1,) in fixed point.

    Raises ``OverflowError`` where a number is above ``bound`` or the weight above MAX_PATIENTS:
    that no sum of so many members wraps rests on it.
    """
    for numbers, largest in ((numerator, bound), (np.array([weight]), MAX_PATIENTS)):
        if not bool((np.abs(numbers) <= largest).all()):
            raise OverflowError(f"a number is not finite, or above {largest}")
    return np.concatenate(
        [
            encode_fixed(numerator, step=step_of(members=members, bound=bound)),
            encode_fixed(np.array([weight]), step=step_of(members=members, bound=MAX_PATIENTS)),
        ]
    )


def decode_contribution(total: Ring, *, members: int, bound: float) -> tuple[FloatArray, float]:
    """(sum of numerators (M,), sum of weights) of so many members' contributions."""
    numerators = decode_fixed(total[:-1], step=step_of(members=members, bound=bound))
    weights = decode_fixed(total[-1:], step=step_of(members=members, bound=MAX_PATIENTS))
    return numerators, float(weights[0])


def sign_offer(
    signing_key: Ed25519PrivateKey,
    *,
    contract_digest: str,
    round: int,
    attempt: int,
    name: str,
    public_key: str,
) -> Offer:
    """A member's offer of a fresh public key (hex) for one attempt at one round."""
    statement = _statement(contract_digest, round, attempt, name, public_key)
    signature = signing_key.sign(statement).hex()
    return Offer(name=name, public_key=public_key, signature=signature)


def is_genuine(
    offer: Offer, signing_key: str, *, contract_digest: str, round: int, attempt: int
) -> bool:
    """Whether the owner of the signing key (hex) made the offer for this attempt."""
    return is_signature(
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(signing_key)),
        bytes.fromhex(offer.signature),
        _statement(contract_digest, round, attempt, offer.name, offer.public_key),
    )


def _statement(contract_digest: str, round: int, attempt: int, name: str, public_key: str) -> bytes:
    return canonical_json(
        {
            "purpose": "fedstill key offer 1",
            "contract_digest": contract_digest,
            "round": round,
            "attempt": attempt,
            "name": name,
            "public_key": public_key,
        }
    )


def pairwise_mask(
    private_key: X25519PrivateKey,
    *,
    name: str,
    offers: Iterable[Offer],
    session: Session,
    count: int,
) -> Ring:
    """What ``name`` adds so that over all members of ``offers`` the sum is 0: (count,).

    Raises ``ValueError`` on an offered key that no honest member has.
    """
    total = np.zeros(count, np.uint64)
    for offer in offers:
        if offer.name == name:
            continue
        public_key = X25519PublicKey.from_public_bytes(bytes.fromhex(offer.public_key))
        secret = private_key.exchange(public_key)
        stream = _stream(session.key(secret, *sorted((name, offer.name))), count)
        if name < offer.name:
            total += stream
        else:
            total -= stream
    return total


def own_mask(seed: bytes, *, name: str, session: Session, count: int) -> Ring:
    """The mask (count,) that ``name`` takes off by giving its seed away."""
    return _stream(session.key(seed, name), count)


def opened_sum(total: Ring, *, seeds: Mapping[str, bytes], session: Session) -> Ring:
    """A sum of all members' masked numbers without the own masks of those whose seeds are given."""
    opened = total.copy()
    for name, seed in seeds.items():
        opened -= own_mask(seed, name=name, session=session, count=len(total))
    return opened


def _stream(key: bytes, count: int) -> Ring:
    """``count`` numbers of ChaCha20's stream; nonce 0, as a key is used for one stream alone."""
    cipher = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(cipher.update(bytes(8 * count)), dtype="<u8").astype(np.uint64, copy=False)
