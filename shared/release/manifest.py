"""The signed documents of a release, and their verification.

A release is one flat folder. Two canonical JSON documents (RFC 8785) are signed, each by a detached
Ed25519 signature of 64 raw bytes beside it:

- ``MANIFEST.json`` lists every data file with size and SHA-256. Its own SHA-256 is the release's
  digest. It holds nothing that differs between equal runs: no time, host, key or version number.
- ``VERSION.json`` says which version of which dataset that digest is, and whose key signed, so that
  a server cannot pass off one genuine release as another.

``MANIFEST.json.minisig``, where it is there, is the manifest's signature again, for ``minisign``.
``SHA256SUMS`` repeats the hashes of the data files and of the manifest for ``sha256sum -c``.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from pydantic import Field, ValidationError

from shared.frozen import Frozen, Slug, canonical_json, explain
from shared.release.errors import (
    ExtraFileError,
    LocalError,
    MissingFileError,
    RevokedKeyError,
    SwappedVersionError,
    TamperedFileError,
    TamperedManifestError,
    TamperedSignatureError,
    UnsafePathError,
    UnsignedError,
    UntrustedKeyError,
)
from shared.release.key_list import RevokedKey
from shared.release.keys import decode_key, is_signature, key_id
from shared.release.minisign import is_signature_text

MANIFEST = "MANIFEST.json"
MANIFEST_SIGNATURE = "MANIFEST.json.sig"
MANIFEST_MINISIGN = "MANIFEST.json.minisig"
VERSION = "VERSION.json"
VERSION_SIGNATURE = "VERSION.json.sig"
SUMS = "SHA256SUMS"
DOCUMENTS = (
    MANIFEST,
    MANIFEST_SIGNATURE,
    MANIFEST_MINISIGN,
    VERSION,
    VERSION_SIGNATURE,
    SUMS,
)
"""The files of a release that its manifest does not list."""
MAX_DOCUMENT_BYTES = 1 * 2**20
"""Largest of the documents accepted, bytes."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_SAFE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"


class ReleaseFile(Frozen):
    """One data file."""

    path: str = Field(pattern=_SAFE_NAME, description="its name in the release's folder")
    bytes: int = Field(ge=0, le=2**40)
    sha256: Sha256


class Manifest(Frozen):
    """Every data file of a release."""

    format: Literal["fedstill-release/1"] = "fedstill-release/1"
    name: Slug
    contract_digest: Sha256
    license: str = Field(max_length=64, description="SPDX identifier")
    files: tuple[ReleaseFile, ...] = Field(min_length=1, max_length=1000)


class VersionRecord(Frozen):
    """Which version of which dataset a manifest is."""

    format: Literal["fedstill-version/1"] = "fedstill-version/1"
    namespace: Slug
    name: Slug
    number: int = Field(ge=1, lt=2**31)
    manifest_sha256: Sha256
    key: Sha256 = Field(description="fingerprint of the publisher's key")


@dataclass(frozen=True)
class Verified:
    """What a successful verification established."""

    manifest: Manifest
    version: VersionRecord

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the manifest: the release's identity."""
        return self.version.manifest_sha256


def manifest_bytes(
    *, name: str, contract_digest: str, license: str, files: dict[str, bytes]
) -> bytes:
    """The canonical MANIFEST.json over ``files``, content by file name."""
    entries = tuple(
        ReleaseFile(path=path, bytes=len(content), sha256=sha256(content))
        for path, content in sorted(files.items())
    )
    manifest = Manifest(name=name, contract_digest=contract_digest, license=license, files=entries)
    return canonical_json(manifest.model_dump(mode="json"))


def version_bytes(
    *, namespace: str, name: str, number: int, manifest: bytes, key: Ed25519PublicKey
) -> bytes:
    """The canonical VERSION.json for ``manifest``."""
    record = VersionRecord(
        namespace=namespace,
        name=name,
        number=number,
        manifest_sha256=sha256(manifest),
        key=key_id(key),
    )
    return canonical_json(record.model_dump(mode="json"))


def sums_bytes(manifest: bytes) -> bytes:
    """The SHA256SUMS that belongs to a valid MANIFEST.json."""
    entries = [(file.path, file.sha256) for file in parse_manifest(manifest).files]
    entries.append((MANIFEST, sha256(manifest)))
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(entries)).encode("ascii")


def sign(document: bytes, key: Ed25519PrivateKey) -> bytes:
    """The detached signature, 64 raw bytes."""
    return key.sign(document)


def sha256(content: bytes) -> str:
    """SHA-256 (hex)."""
    return hashlib.sha256(content).hexdigest()


def parse_manifest(content: bytes) -> Manifest:
    """Reads MANIFEST.json.

    Raises ``UnsafePathError`` where a listed name could leave the folder, ``TamperedManifestError``
    where it is anything else than a canonical manifest.
    """
    _refuse_unsafe_paths(content)
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise TamperedManifestError(MANIFEST, f"is not a manifest ({explain(error)})") from None
    if canonical_json(manifest.model_dump(mode="json")) != content:
        raise TamperedManifestError(MANIFEST, "is not canonical JSON (RFC 8785)")
    paths = [file.path.casefold() for file in manifest.files]
    if len(set(paths)) != len(paths) or {name.casefold() for name in DOCUMENTS} & set(paths):
        raise TamperedManifestError(MANIFEST, "lists a file twice, or one of the documents")
    return manifest


def _refuse_unsafe_paths(content: bytes) -> None:
    try:
        document = json.loads(content)
        paths = [file["path"] for file in document["files"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return  # not a manifest at all: the schema says what is wrong
    for path in paths:
        if isinstance(path, str) and (
            "/" in path or "\\" in path or ":" in path or path in ("", ".", "..") or "\0" in path
        ):
            raise UnsafePathError(
                MANIFEST,
                f"lists {path!r}, which is not a plain file name",
                "do not use this release; tell its publisher",
            )


def verify_documents(
    *,
    manifest: bytes,
    manifest_signature: bytes,
    version: bytes,
    version_signature: bytes,
    keys: Sequence[Ed25519PublicKey],
    revoked: Sequence[RevokedKey] = (),
) -> Verified:
    """Verifies the signed documents against the trusted ``keys``; nothing else is read before.

    A key of ``revoked`` counts for the versions it is honoured for alone. Raises
    ``UnsignedError``, ``UntrustedKeyError``, ``RevokedKeyError``, ``TamperedSignatureError``,
    ``TamperedManifestError``, ``SwappedVersionError`` or ``UnsafePathError``.
    """
    for name, signature in (
        (VERSION_SIGNATURE, version_signature),
        (MANIFEST_SIGNATURE, manifest_signature),
    ):
        if not signature:
            raise UnsignedError(name, "is empty", "do not use this release; tell its publisher")
    try:
        record = VersionRecord.model_validate_json(version)
    except ValidationError as error:
        raise TamperedSignatureError(
            VERSION, f"is not a version record ({explain(error)})"
        ) from None
    key = _honoured(record, version, revoked)
    key = key or next((key for key in keys if key_id(key) == record.key), None)
    if key is None:
        trusted = ", ".join(key_id(key)[:16] for key in keys) or "none"
        raise UntrustedKeyError(
            VERSION,
            f"is signed by key {record.key[:16]}, which is not trusted (trusted: {trusted})",
            "ask the publisher for the public key and pass it with --key FILE",
        )
    if not is_signature(key, version_signature, version):
        raise TamperedSignatureError(
            VERSION_SIGNATURE, f"is not the publisher's signature of {VERSION}"
        )
    signed = is_signature(key, manifest_signature, manifest)
    if sha256(manifest) != record.manifest_sha256:
        if signed:
            raise SwappedVersionError(
                VERSION, f"belongs to another release than {MANIFEST}: versions were swapped"
            )
        raise TamperedManifestError(MANIFEST, "is not the document that was signed")
    if not signed:
        raise TamperedSignatureError(
            MANIFEST_SIGNATURE, f"is not the publisher's signature of {MANIFEST}"
        )
    parsed = parse_manifest(manifest)
    if parsed.name != record.name:
        raise SwappedVersionError(VERSION, f"names {record.name}, {MANIFEST} names {parsed.name}")
    return Verified(manifest=parsed, version=record)


def _honoured(
    record: VersionRecord, version: bytes, revoked: Sequence[RevokedKey]
) -> Ed25519PublicKey | None:
    """The revoked key that signed, where its publisher vouches for this very version."""
    for one in revoked:
        if key_id(decode_key(one.key)) == record.key:
            if sha256(version) not in one.honoured:
                raise RevokedKeyError(
                    VERSION,
                    f"is signed by key {record.key[:16]}, which was revoked: {one.reason}",
                    "ask the publisher for a version signed by another key",
                )
            return decode_key(one.key)
    return None


def read_document(folder: Path, name: str) -> bytes:
    """A document of a release; raises ``MissingFileError``, ``UnsignedError`` where it would be a
    signature, or ``TamperedFileError`` (too large)."""
    path = folder / name
    if path.is_symlink() or not path.is_file():
        if name in (MANIFEST_SIGNATURE, VERSION_SIGNATURE):
            raise UnsignedError(name, "is missing", "download the release again")
        raise MissingFileError(name, "is missing", "download the release again")
    with path.open("rb") as file:
        content = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        raise TamperedFileError(name, f"is larger than {MAX_DOCUMENT_BYTES} bytes")
    return content


def verify_folder(
    folder: Path, *, keys: Sequence[Ed25519PublicKey], revoked: Sequence[RevokedKey] = ()
) -> Verified:
    """Verifies a downloaded release: signatures first, then every file, and that there is no other.

    Raises the ``ReleaseError`` that fits, naming the file.
    """
    if not folder.is_dir():
        raise LocalError(str(folder), "is not a folder", "give the folder of a release")
    verified = verify_documents(
        manifest=read_document(folder, MANIFEST),
        manifest_signature=read_document(folder, MANIFEST_SIGNATURE),
        version=read_document(folder, VERSION),
        version_signature=read_document(folder, VERSION_SIGNATURE),
        keys=keys,
        revoked=revoked,
    )
    _check_minisign(folder, verified, [*keys, *(decode_key(one.key) for one in revoked)])
    if read_document(folder, SUMS) != sums_bytes(read_document(folder, MANIFEST)):
        raise TamperedFileError(SUMS, f"does not repeat the hashes of {MANIFEST}")
    listed = {file.path for file in verified.manifest.files}
    for path in sorted(folder.iterdir()):
        if path.name not in listed and path.name not in DOCUMENTS:
            raise ExtraFileError(
                path.name, "is not part of the signed release", "move it out of the folder"
            )
    for file in verified.manifest.files:
        verify_file(folder / file.path, file)
    return verified


def _check_minisign(folder: Path, verified: Verified, keys: Sequence[Ed25519PublicKey]) -> None:
    path = folder / MANIFEST_MINISIGN
    if not path.exists() and not path.is_symlink():
        return
    content, manifest = read_document(folder, MANIFEST_MINISIGN), read_document(folder, MANIFEST)
    signers = [key for key in keys if key_id(key) == verified.version.key]
    if not any(is_signature_text(key, content, manifest) for key in signers):
        raise TamperedSignatureError(
            MANIFEST_MINISIGN, f"is not the publisher's signature of {MANIFEST}"
        )


def verify_file(path: Path, expected: ReleaseFile) -> None:
    """Checks one file; raises ``MissingFileError`` or ``TamperedFileError``."""
    if path.is_symlink() or not path.is_file():
        raise MissingFileError(expected.path, "is missing", "download the release again")
    hint = "download the release again, and tell the publisher if it stays so"
    size = path.stat().st_size
    if size != expected.bytes:
        problem = f"has {size} bytes, the manifest says {expected.bytes}"
        raise TamperedFileError(expected.path, problem, hint)
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected.sha256:
        raise TamperedFileError(expected.path, "is not the file that was signed (SHA-256)", hint)
