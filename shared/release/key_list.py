"""The publisher's signed list of keys: which sign releases, which signed them, which are revoked.

Lists form a chain, served oldest first at ``/api/publisher/keys``. Each is signed by the release
key of the list before it and by its own, so that whoever trusts one release key can follow the
chain from it, and nobody can list a key he does not hold. Nothing is ever dropped from a list but a
replaced head key: a key that signed releases stays, as ``retired`` or revoked.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from pydantic import AfterValidator, Field, ValidationError, model_validator

from shared.frozen import Frozen, canonical_json, explain
from shared.release.errors import BrokenRotationError, UntrustedKeyError
from shared.release.keys import decode_key, encode_key, is_signature, key_id

KEYS = "keys.json"
MAX_LISTS = 1000
MAX_HONOURED = 5000
MAX_CHAIN_BYTES = 16 * 2**20
"""A chain carries every version honoured in each list since: more than other documents may have."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _canonical_key(text: str) -> str:
    if encode_key(decode_key(text)) != text:
        raise ValueError("not a key in canonical base64")
    return text


EncodedKey = Annotated[str, Field(max_length=64), AfterValidator(_canonical_key)]


class ListedKey(Frozen):
    """A key in force: ``release`` signs, ``retired`` signed, ``head`` signs heads (online)."""

    key: EncodedKey
    use: Literal["release", "retired", "head"]
    since: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$", description="day, UTC")


class RevokedKey(Frozen):
    """A key whose signatures count no longer, but for the version records named."""

    key: EncodedKey
    reason: str = Field(min_length=1, max_length=500)
    honoured: tuple[Sha256, ...] = Field((), max_length=MAX_HONOURED)
    """SHA-256 of each VERSION.json it signed that the publisher vouches for."""


class KeyList(Frozen):
    """One list of the chain."""

    format: Literal["fedstill-keys/1"] = "fedstill-keys/1"
    sequence: int = Field(ge=1, le=MAX_LISTS)
    previous: Sha256 | None = Field(description="SHA-256 of the list before, canonical")
    keys: tuple[ListedKey, ...] = Field(max_length=MAX_LISTS)
    revoked: tuple[RevokedKey, ...] = Field((), max_length=MAX_LISTS)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        uses = [one.use for one in self.keys]
        if uses.count("release") != 1 or uses.count("head") != 1:
            raise ValueError("must name one release key and one head key")
        everything = [one.key for one in self.keys] + [one.key for one in self.revoked]
        if len(set(everything)) != len(everything):
            raise ValueError("names a key twice")
        if (self.sequence == 1) != (self.previous is None):
            raise ValueError("the first list alone has none before it")
        return self

    def content(self) -> bytes:
        """The canonical JSON that is signed."""
        return canonical_json(self.model_dump(mode="json"))

    def digest(self) -> str:
        """SHA-256 (hex) of the list."""
        return hashlib.sha256(self.content()).hexdigest()

    def named(self, *uses: str) -> tuple[Ed25519PublicKey, ...]:
        """The keys of these uses."""
        return tuple(decode_key(one.key) for one in self.keys if one.use in uses)

    @property
    def release(self) -> Ed25519PublicKey:
        """The key that signs releases now."""
        return self.named("release")[0]

    @property
    def head(self) -> Ed25519PublicKey:
        """The key that signs heads now."""
        return self.named("head")[0]

    @property
    def trusted(self) -> tuple[Ed25519PublicKey, ...]:
        """The keys whose releases are genuine."""
        return self.named("release", "retired")


class ListSignature(Frozen):
    """A signature of a list."""

    key: Sha256 = Field(description="fingerprint")
    signature: str = Field(max_length=128, description="base64 of 64 bytes")


class SignedKeyList(Frozen):
    """A list with its signatures."""

    listed: KeyList
    signatures: tuple[ListSignature, ...] = Field(max_length=4)


class KeyChain(Frozen):
    """Every list a publisher has made, oldest first: what the server answers."""

    lists: tuple[SignedKeyList, ...] = Field(min_length=1, max_length=MAX_LISTS)


def sign_list(listed: KeyList, signers: Sequence[Ed25519PrivateKey]) -> SignedKeyList:
    """Signs a list with each of ``signers``."""
    content = listed.content()
    by_id = {key_id(signer.public_key()): signer for signer in signers}
    return SignedKeyList(
        listed=listed,
        signatures=tuple(
            ListSignature(key=name, signature=base64.b64encode(signer.sign(content)).decode())
            for name, signer in sorted(by_id.items())
        ),
    )


def read_chain(content: bytes) -> tuple[KeyList, ...]:
    """The lists of a chain that holds together; raises ``BrokenRotationError``.

    Nothing says yet that any of them is to be trusted: see ``follow``.
    """
    try:
        chain = KeyChain.model_validate(json.loads(content))
    except ValidationError as error:
        raise BrokenRotationError(KEYS, f"is not a chain of key lists ({explain(error)})") from None
    except (ValueError, RecursionError):
        raise BrokenRotationError(KEYS, "is not JSON") from None
    before: KeyList | None = None
    for number, signed in enumerate(chain.lists, start=1):
        listed = signed.listed
        problem = _fault(before, signed) if listed.sequence == number else "is out of order"
        if problem:
            raise BrokenRotationError(
                KEYS, f"list {number} {problem}", "do not use this server; ask the publisher"
            )
        before = listed
    return tuple(signed.listed for signed in chain.lists)


def follow(
    chain: Sequence[KeyList], *, key: Ed25519PublicKey | None, seen: KeyList | None
) -> KeyList:
    """The newest list, once it is shown to follow from what is trusted already.

    That is ``key``, which must be the release key of one of the lists, and ``seen``, which must be
    one of them; with neither, the chain is taken at first use. Raises ``UntrustedKeyError``,
    ``BrokenRotationError``.
    """
    newest = chain[-1]
    if seen is not None and (
        seen.sequence > newest.sequence or chain[seen.sequence - 1].digest() != seen.digest()
    ):
        raise BrokenRotationError(
            KEYS,
            f"list {seen.sequence} was seen before and is not in the server's chain "
            f"of {newest.sequence}",
            "ask the publisher; a new key that you had from him is trusted by --key FILE",
        )
    if key is not None and all(encode_key(one.release) != encode_key(key) for one in chain):
        raise UntrustedKeyError(
            KEYS,
            f"key {key_id(key)[:16]}, which you trust, never was this server's release key",
            "ask the publisher for the public key and pass it with --key FILE",
        )
    return newest


def _fault(before: KeyList | None, signed: SignedKeyList) -> str:
    """What is wrong with a list that comes after ``before``; empty where nothing is."""
    listed = signed.listed
    signers = {encode_key(one.release) for one in (before or listed, listed)}
    if not all(_signed_by(signed, decode_key(signer)) for signer in signers):
        return "is not signed by the release key before it and its own"
    if before is None:
        first = [one.use for one in listed.keys]
        return "" if len(first) == 2 and not listed.revoked else "begins with a past"
    if listed.previous != before.digest():
        return "does not name the list before it"
    past = {one.key for one in before.keys if one.use != "head"}
    known = past | {one.key for one in before.keys} | {one.key for one in before.revoked}
    revoked = {one.key for one in listed.revoked}
    kept = {one.key for one in listed.keys if one.use != "head"} | revoked
    release, was = encode_key(listed.release), encode_key(before.release)
    if not past <= kept or not {one.key for one in before.revoked} <= revoked:
        return "leaves out a key that was listed"
    if not revoked <= known or not {one.key for one in listed.keys if one.use == "retired"} <= {
        one.key for one in before.keys if one.use in ("release", "retired")
    }:
        return "has a past that the lists before it do not show"
    if release != was and release in known:
        return "brings back a key of the past"
    return ""


def _signed_by(signed: SignedKeyList, key: Ed25519PublicKey) -> bool:
    content = signed.listed.content()
    for one in signed.signatures:
        try:
            raw = base64.b64decode(one.signature, validate=True)
        except binascii.Error:
            continue
        if one.key == key_id(key) and is_signature(key, raw, content):
            return True
    return False
