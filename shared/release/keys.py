"""Ed25519 keys of publishers, in PEM files that openssl reads too."""

import base64
import binascii
import errno
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from shared.release.errors import LocalError


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 (hex) of the 32 raw bytes of a public key: its fingerprint."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def is_signature(key: Ed25519PublicKey, signature: bytes, document: bytes) -> bool:
    """Whether ``signature`` (64 raw bytes) was made over ``document`` by the key's owner."""
    try:
        key.verify(signature, document)
    except InvalidSignature:
        return False
    return True


def encode_key(key: Ed25519PublicKey) -> str:
    """Base64 of the raw key, as the API and the file of known publishers carry it."""
    return base64.b64encode(key.public_bytes_raw()).decode("ascii")


def decode_key(text: str) -> Ed25519PublicKey:
    """The key ``encode_key`` wrote; raises ``ValueError`` on anything else."""
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("not base64") from None
    return Ed25519PublicKey.from_public_bytes(raw)


def write_key_pair(private: Path, public: Path) -> Ed25519PublicKey:
    """Makes a key pair: ``private`` as PKCS#8 PEM with mode 0600, ``public`` as PEM.

    Raises ``FileExistsError`` rather than replacing a private key.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    if private.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(private))
    # The public half first: an interrupted call is then repeated, not half done for ever.
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    return key.public_key()


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Reads a PKCS#8 PEM; raises ``LocalError`` naming the file."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise LocalError(str(path), f"cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise LocalError(str(path), "is not an Ed25519 private key in PEM")
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Reads a PEM public key; raises ``LocalError`` naming the file."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise LocalError(str(path), f"cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise LocalError(
            str(path),
            "is not an Ed25519 public key in PEM",
            "ask the publisher for keys/release.pub of the aggregator",
        )
    return key
