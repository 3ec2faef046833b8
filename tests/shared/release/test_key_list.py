import json
from collections.abc import Callable
from typing import Any, Literal

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.release.errors import BrokenRotationError, UntrustedKeyError
from shared.release.key_list import (
    KeyChain,
    KeyList,
    ListedKey,
    RevokedKey,
    SignedKeyList,
    follow,
    read_chain,
    sign_list,
)
from shared.release.keys import encode_key, key_id

A, B, C, HEAD, EVIL = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(1, 6))


def named(key: Ed25519PrivateKey, use: Literal["release", "retired", "head"]) -> ListedKey:
    return ListedKey(key=encode_key(key.public_key()), use=use, since="2026-01-01")


def gone(key: Ed25519PrivateKey) -> RevokedKey:
    return RevokedKey(key=encode_key(key.public_key()), reason="stolen")


def first(key: Ed25519PrivateKey = A) -> SignedKeyList:
    keys = (named(key, "release"), named(HEAD, "head"))
    return sign_list(KeyList(sequence=1, previous=None, keys=keys), [key])


def after(
    before: SignedKeyList,
    *keys: ListedKey,
    signers: list[Ed25519PrivateKey],
    revoked: tuple[RevokedKey, ...] = (),
    **changes: Any,
) -> SignedKeyList:
    values = {
        "sequence": before.listed.sequence + 1,
        "previous": before.listed.digest(),
        "keys": (*keys, named(HEAD, "head")),
        "revoked": revoked,
        **changes,
    }
    return sign_list(KeyList.model_validate(values), signers)


def chain(*lists: SignedKeyList) -> tuple[KeyList, ...]:
    return read_chain(KeyChain(lists=lists).model_dump_json().encode())


ONE = first()
TWO = after(ONE, named(B, "release"), named(A, "retired"), signers=[A, B])
THREE = after(TWO, named(C, "release"), named(A, "retired"), signers=[B, C], revoked=(gone(B),))


def test_a_chain_is_followed_from_any_key_of_it() -> None:
    lists = chain(ONE, TWO, THREE)
    for known in (A, B, C):
        newest = follow(lists, key=known.public_key(), seen=None)
        assert key_id(newest.release) == key_id(C.public_key())
    assert [key_id(key) for key in newest.trusted] == [key_id(key.public_key()) for key in (C, A)]
    assert follow(lists, key=None, seen=ONE.listed) == THREE.listed
    assert follow(lists, key=None, seen=None) == THREE.listed


def test_who_is_not_in_the_chain_trusts_none_of_it() -> None:
    with pytest.raises(UntrustedKeyError, match="never was"):
        follow(chain(ONE, TWO), key=EVIL.public_key(), seen=None)
    with pytest.raises(UntrustedKeyError):  # a head key vouches for no release
        follow(chain(ONE, TWO), key=HEAD.public_key(), seen=None)


def test_a_list_that_was_seen_must_be_there() -> None:
    with pytest.raises(BrokenRotationError, match="list 2 was seen"):
        follow(chain(ONE), key=None, seen=TWO.listed)
    other = after(ONE, named(C, "release"), named(A, "retired"), signers=[A, C])
    with pytest.raises(BrokenRotationError, match="list 2 was seen"):
        follow(chain(ONE, other), key=None, seen=TWO.listed)


BROKEN: dict[str, Callable[[], tuple[SignedKeyList, ...]]] = {
    "no list of the first": lambda: (TWO,),
    "a gap": lambda: (ONE, THREE),
    "another order": lambda: (TWO, ONE),
    "not signed by the one before": lambda: (
        ONE,
        after(ONE, named(B, "release"), named(A, "retired"), signers=[B]),
    ),
    "not signed by itself": lambda: (
        ONE,
        after(ONE, named(B, "release"), named(A, "retired"), signers=[A]),
    ),
    "signed by another": lambda: (
        ONE,
        after(ONE, named(B, "release"), named(A, "retired"), signers=[EVIL, B]),
    ),
    "signed by the head key": lambda: (
        ONE,
        after(ONE, named(B, "release"), named(A, "retired"), signers=[HEAD, B]),
    ),
    "after another list": lambda: (
        ONE,
        after(ONE, named(B, "release"), named(A, "retired"), signers=[A, B], previous="0" * 64),
    ),
    "the old key left out": lambda: (ONE, after(ONE, named(B, "release"), signers=[A, B])),
    "a revocation taken back": lambda: (
        ONE,
        TWO,
        THREE,
        after(THREE, named(C, "release"), named(A, "retired"), signers=[C]),
    ),
    "a revoked key back in force": lambda: (
        ONE,
        TWO,
        THREE,
        after(THREE, named(B, "release"), named(A, "retired"), named(C, "retired"), signers=[C, B]),
    ),
    "a past that never was": lambda: (
        ONE,
        after(
            ONE, named(B, "release"), named(A, "retired"), named(EVIL, "retired"), signers=[A, B]
        ),
    ),
    "revokes who never was": lambda: (
        ONE,
        after(ONE, named(A, "release"), signers=[A], revoked=(gone(EVIL),)),
    ),
    "a retired key at the head": lambda: (
        ONE,
        TWO,
        after(TWO, named(A, "release"), named(B, "retired"), signers=[B, A]),
    ),
    "begins with a past": lambda: (
        sign_list(
            KeyList(
                sequence=1,
                previous=None,
                keys=(named(A, "release"), named(HEAD, "head"), named(B, "retired")),
            ),
            [A],
        ),
    ),
}


@pytest.mark.parametrize("lists", BROKEN.values(), ids=BROKEN)
def test_a_broken_chain_is_refused(lists: Callable[[], tuple[SignedKeyList, ...]]) -> None:
    with pytest.raises(BrokenRotationError):
        chain(*lists())


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"lists": []}', b"[" * 100_000, b'{"lists": [{}]}', b"\xff"]
)
def test_what_is_no_chain(content: bytes) -> None:
    with pytest.raises(BrokenRotationError, match=r"keys\.json"):
        read_chain(content)


def test_every_word_of_a_list_is_signed() -> None:
    text = KeyChain(lists=(ONE, TWO)).model_dump_json()
    for change in (('"since":"2026-01-01"', '"since":"2026-01-02"'), ("retired", "release")):
        with pytest.raises(BrokenRotationError):
            read_chain(text.replace(*change).encode())
    document = json.loads(text)
    document["lists"][1]["listed"]["note"] = "x"
    with pytest.raises(BrokenRotationError):
        read_chain(json.dumps(document).encode())
