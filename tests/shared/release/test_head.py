from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.release.errors import (
    FrozenError,
    ReleaseError,
    SwappedVersionError,
    TamperedSignatureError,
)
from shared.release.head import Head, moment, read_head, sign_head

ISSUED = datetime(2026, 3, 1, 12, tzinfo=UTC)


def content(key: Ed25519PrivateKey, name: str = "ct-demo") -> bytes:
    head = Head(
        namespace="fedstill",
        name=name,
        sequence=3,
        number=2,
        manifest_sha256="a" * 64,
        withdrawn=(1,),
        issued_at=moment(ISSUED),
        expires_at=moment(ISSUED + timedelta(days=14)),
    )
    return sign_head(head, key).model_dump_json().encode()


def read(text: bytes, key: Ed25519PrivateKey, *, days: float = 1.0) -> Head:
    now = ISSUED + timedelta(days=days)
    return read_head(text, namespace="fedstill", name="ct-demo", key=key.public_key(), now=now)


def test_a_head_holds_until_it_expires(head_key: Ed25519PrivateKey) -> None:
    for days in (0, 1, 13.99):
        assert read(content(head_key), head_key, days=days).number == 2
    for days in (14.01, 400, -1):
        with pytest.raises(FrozenError, match=r"expired|future"):
            read(content(head_key), head_key, days=days)


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        (b'"number":2', b'"number":1', TamperedSignatureError),
        (b"2026-03-15", b"2027-03-15", TamperedSignatureError),
        (b'"withdrawn":[1]', b'"withdrawn":[]', TamperedSignatureError),
        (b"{", b"", TamperedSignatureError),
        (b'"signature":"', b'"signature":"!', TamperedSignatureError),
    ],
)
def test_every_word_of_a_head_is_signed(
    head_key: Ed25519PrivateKey, old: bytes, new: bytes, kind: type[ReleaseError]
) -> None:
    text = content(head_key)
    assert old in text
    with pytest.raises(kind):
        read(text.replace(old, new), head_key)


def test_a_head_of_another_dataset_or_key(
    key: Ed25519PrivateKey, head_key: Ed25519PrivateKey
) -> None:
    with pytest.raises(SwappedVersionError, match="mr-demo"):
        read(content(head_key, "mr-demo"), head_key)
    with pytest.raises(TamperedSignatureError):  # nor does the release key sign heads
        read(content(key), head_key)
