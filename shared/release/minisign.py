"""Ed25519 keys and signatures in minisign's format, so that ``minisign -V`` checks a release.

The prehashed form (algorithm ``ED``): what is signed is BLAKE2b-512 of the document. A second,
global signature covers the first and the trusted comment. minisign draws a key's id at random and
only compares it; ours is the first 8 bytes of the key's SHA-256, so that it need not be kept.
Format: https://jedisct1.github.io/minisign/
"""

import base64
import hashlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.release.keys import is_signature

SUFFIX = ".minisig"
UNTRUSTED = "untrusted comment: signature from a fedstill publisher's key"
TRUSTED = "trusted comment: "


def public_key_text(key: Ed25519PublicKey) -> bytes:
    """The content of a ``.pub`` file that ``minisign -p`` reads."""
    identity = _key_id(key)
    shown = identity[::-1].hex().upper()  # minisign prints the id as a little-endian number
    return _lines(
        f"untrusted comment: minisign public key {shown}", b"Ed" + identity + key.public_bytes_raw()
    )


def signature_text(document: bytes, key: Ed25519PrivateKey, *, comment: str) -> bytes:
    """The content of a ``.minisig`` file; ``comment`` is signed, one line of ASCII.

    Raises ``ValueError`` where the comment is not.
    """
    if not (comment.isascii() and comment.isprintable()):
        raise ValueError("comment: not one line of ASCII")
    signature = key.sign(hashlib.blake2b(document).digest())
    trusted = f"{TRUSTED}{comment}"
    both = key.sign(signature + comment.encode("ascii"))
    return _lines(UNTRUSTED, b"ED" + _key_id(key.public_key()) + signature) + _lines(trusted, both)


def is_signature_text(key: Ed25519PublicKey, content: bytes, document: bytes) -> bool:
    """Whether ``content`` is, to the byte, what ``signature_text`` made of ``document``."""
    try:
        _, signed, trusted, both, _ = content.decode("ascii").split("\n")
        head = base64.b64decode(signed, validate=True)
        signature, comment = head[10:], trusted.removeprefix(TRUSTED)
        again = _lines(UNTRUSTED, b"ED" + _key_id(key) + signature) + _lines(
            f"{TRUSTED}{comment}", base64.b64decode(both, validate=True)
        )
        return (
            again == content
            and is_signature(key, signature, hashlib.blake2b(document).digest())
            and is_signature(key, base64.b64decode(both), signature + comment.encode("ascii"))
        )
    except ValueError:  # of the encoding, the number of lines, or base64
        return False


def _key_id(key: Ed25519PublicKey) -> bytes:
    return hashlib.sha256(key.public_bytes_raw()).digest()[:8]


def _lines(first: str, second: bytes) -> bytes:
    return f"{first}\n{base64.b64encode(second).decode('ascii')}\n".encode("ascii")
