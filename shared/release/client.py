"""Fetches releases over HTTP and lets nothing through that it has not verified.

A release is downloaded into a hidden folder beside its destination, verified there as a whole, and
renamed: the destination is absent or complete. A broken connection is resumed with a Range request
within the run.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shared.durable import sync_folder
from shared.release.errors import (
    LocalError,
    NetworkError,
    ReleaseError,
    SwappedVersionError,
    UntrustedKeyError,
)
from shared.release.keys import decode_key, encode_key
from shared.release.manifest import (
    DOCUMENTS,
    MANIFEST,
    MANIFEST_SIGNATURE,
    VERSION,
    VERSION_SIGNATURE,
    Verified,
    verify_documents,
    verify_folder,
)
from shared.release.publishers import check_history, pinned_key, remember
from shared.release.transfer import fetch_json, fetch_small, open_client, transfer

NAMESPACE = "fedstill"

Progress = Callable[[int, int], None]
"""Called with the bytes had and the bytes expected in all."""


@dataclass(frozen=True)
class Reference:
    """What to get: a dataset, and a version as the server's ``resolve`` route takes it."""

    namespace: str
    name: str
    revision: str

    @property
    def newest(self) -> bool:
        """Whether the newest version is asked for, whichever it is."""
        return self.revision == "main"


@dataclass(frozen=True)
class Fetched:
    """A verified release on disk."""

    folder: Path
    verified: Verified
    key: Ed25519PublicKey
    newly_pinned: bool
    """The server had no pinned key, or another one, and has this one now."""
    already_there: bool
    """The folder was there, complete and genuine: nothing was downloaded."""


def parse_reference(text: str) -> Reference:
    """Reads ``[NAMESPACE/]NAME[@VERSION]``; VERSION is ``3``, ``v3``, or a digest (40 or 64 hex).

    Raises ``ValueError`` on anything else.
    """
    dataset, _, version = text.partition("@")
    namespace, _, name = dataset.rpartition("/")
    namespace = namespace or NAMESPACE
    for part in (namespace, name):
        if not part or not all(c.isascii() and (c.isalnum() or c == "-") for c in part):
            raise ValueError("a dataset is NAME or NAMESPACE/NAME in letters, digits and hyphens")
    if "@" not in text:
        revision = "main"
    elif version.removeprefix("v").isdecimal() and len(version) < 12:
        revision = f"v{version.removeprefix('v')}"
    elif len(version) in (40, 64) and all(c in "0123456789abcdef" for c in version):
        revision = version[:40]
    else:
        raise ValueError("a version is a number such as v3, or 40 or 64 hexadecimal digits")
    return Reference(namespace=namespace, name=name, revision=revision)


def get(
    reference: Reference,
    *,
    url: str,
    to: Path | None = None,
    key: Ed25519PublicKey | None = None,
    on_progress: Progress | None = None,
) -> Fetched:
    """Downloads a release, verifies it, and puts it at ``to`` (default ``./NAME-vN``).

    ``key`` is the publisher's where the caller knows it; else the key pinned to the server, else
    the one the server names, which is then pinned. Raises the ``ReleaseError`` that fits and leaves
    nothing behind.
    """
    pinned = pinned_key(url)
    trusted = key or pinned
    with open_client() as client:
        if trusted is None:
            trusted = offered_key(client, url=url)
        documents, revision, verified = _documents(client, reference, url=url, key=trusted)
        version = verified.version
        check_history(url, trusted, version, newest=reference.newest)
        folder = to or Path(f"{version.name}-v{version.number}")
        already_there = _is_there(folder, verified, trusted)
        if not already_there:
            _download(
                client,
                reference,
                url=url,
                revision=revision,
                folder=folder,
                documents=documents,
                verified=verified,
                key=trusted,
                on_progress=on_progress,
            )
    remember(url, trusted, version)
    return Fetched(
        folder=folder,
        verified=verified,
        key=trusted,
        newly_pinned=pinned is None or encode_key(pinned) != encode_key(trusted),
        already_there=already_there,
    )


def offered_key(client: httpx.Client, *, url: str) -> Ed25519PublicKey:
    """The key a server says it signs with."""
    document = fetch_json(client, f"{url.rstrip('/')}/api/publisher")
    try:
        return decode_key(document["key"])
    except (KeyError, TypeError, ValueError):
        raise UntrustedKeyError(
            "api/publisher", "names no Ed25519 key", "pass the publisher's key with --key FILE"
        ) from None


def catalogue(url: str) -> dict[str, Any]:
    """The datasets a server lists; unverified."""
    with open_client() as client:
        return _object(fetch_json(client, f"{url.rstrip('/')}/api/datasets"))


def describe(reference: Reference, *, url: str) -> dict[str, Any]:
    """What a server says of a dataset's version; unverified."""
    path = f"{url.rstrip('/')}/api/datasets/{reference.namespace}/{reference.name}"
    with open_client() as client:
        return _object(fetch_json(client, f"{path}/revision/{reference.revision}"))


def _object(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise NetworkError("api/datasets", "the server's answer is not what this client expects")
    return document


def _documents(
    client: httpx.Client, reference: Reference, *, url: str, key: Ed25519PublicKey
) -> tuple[dict[str, bytes], str, Verified]:
    """The verified documents, and the revision under which to fetch the rest."""
    address = _file_url(reference, url=url, revision=reference.revision, path=MANIFEST)
    manifest, headers = fetch_small(client, address, name=MANIFEST)
    # From here on by commit, so that a version published meanwhile cannot mix with this one.
    commit = headers.get("X-Repo-Commit", "")
    revision = commit if re.fullmatch("[0-9a-f]{40}", commit) else reference.revision
    documents = {MANIFEST: manifest}
    for name in DOCUMENTS:
        if name != MANIFEST:
            address = _file_url(reference, url=url, revision=revision, path=name)
            documents[name], _ = fetch_small(client, address, name=name)
    verified = verify_documents(
        manifest=documents[MANIFEST],
        manifest_signature=documents[MANIFEST_SIGNATURE],
        version=documents[VERSION],
        version_signature=documents[VERSION_SIGNATURE],
        keys=[key],
    )
    _check_asked_for(reference, verified)
    return documents, revision, verified


def _file_url(reference: Reference, *, url: str, revision: str, path: str) -> str:
    dataset = f"{reference.namespace}/{reference.name}"
    return f"{url.rstrip('/')}/datasets/{dataset}/resolve/{revision}/{path}"


def _check_asked_for(reference: Reference, verified: Verified) -> None:
    version = verified.version
    asked = f"{reference.namespace}/{reference.name}@{reference.revision}"
    same_version = (
        reference.newest
        or reference.revision == f"v{version.number}"
        or reference.revision == verified.digest[:40]
    )
    if (version.namespace, version.name) != (reference.namespace, reference.name) or (
        not same_version
    ):
        given = f"{version.namespace}/{version.name}@v{version.number}"
        raise SwappedVersionError(
            VERSION, f"the server sent {given} in place of {asked}", "tell the publisher"
        )


def _is_there(folder: Path, verified: Verified, key: Ed25519PublicKey) -> bool:
    if not folder.exists() and not folder.is_symlink():
        return False
    try:
        if verify_folder(folder, keys=[key]) == verified:
            return True
    except ReleaseError:
        pass
    raise LocalError(
        str(folder), "exists and is not this release", "remove it or choose another with --to"
    )


def _download(
    client: httpx.Client,
    reference: Reference,
    *,
    url: str,
    revision: str,
    folder: Path,
    documents: dict[str, bytes],
    verified: Verified,
    key: Ed25519PublicKey,
    on_progress: Progress | None,
) -> None:
    total = sum(file.bytes for file in verified.manifest.files)
    had = 0

    def count(change: int) -> None:
        nonlocal had
        had += change
        if on_progress is not None:
            on_progress(had, total)

    partial: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
        partial.chmod(0o755)
        for name, content in documents.items():
            (partial / name).write_bytes(content)
        for file in verified.manifest.files:
            address = _file_url(reference, url=url, revision=revision, path=file.path)
            with (partial / file.path).open("xb") as sink:
                transfer(
                    client,
                    address,
                    name=file.path,
                    sink=sink,
                    limit=file.bytes,
                    expected=file.bytes,
                    on_bytes=count,
                )
        verify_folder(partial, keys=[key])
        for path in partial.iterdir():
            with path.open("rb") as written:
                os.fsync(written.fileno())
        sync_folder(partial)
        partial.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise LocalError(str(folder), f"cannot be written ({error.strerror})") from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
