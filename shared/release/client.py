"""Fetches releases over HTTP and lets nothing through that it has not verified.

1. The chain of key lists, which must follow from what is trusted (`key_list`).
2. The dataset's head, fresh and no older than the last one seen (`head`): which version is newest.
3. The signed documents of the version, and that the server lists no file beside theirs.
4. The files, several at once, into the user's cache (`downloads`), where a later run goes on.
5. All of it verified there as a whole, then moved: the destination is absent or complete.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shared.release.delivery import deliver, is_there
from shared.release.downloads import Progress
from shared.release.errors import (
    ExtraFileError,
    MissingFileError,
    NetworkError,
    NotFoundError,
    SwappedVersionError,
    UnsignedError,
    WithdrawnError,
)
from shared.release.head import HEAD, Head, read_head
from shared.release.key_list import KEYS, MAX_CHAIN_BYTES, KeyList, follow, read_chain
from shared.release.keys import decode_key, encode_key, key_id
from shared.release.manifest import (
    DOCUMENTS,
    MANIFEST,
    MANIFEST_SIGNATURE,
    SUMS,
    VERSION,
    VERSION_SIGNATURE,
    Verified,
    verify_documents,
)
from shared.release.publishers import (
    Publisher,
    check_head,
    check_history,
    known_publisher,
    known_publishers_file,
    origin,
    remember,
)
from shared.release.transfer import Session, fetch_json, fetch_small, open_session

NAMESPACE = "fedstill"
REQUIRED = (MANIFEST, MANIFEST_SIGNATURE, VERSION, VERSION_SIGNATURE, SUMS)

Say = Callable[[str], None]


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
    """The server had no pinned key, or another publisher's, and has this one now."""
    rotated: bool
    """The publisher's key list has grown since it was last seen, and follows from it."""
    already_there: bool
    """The folder was there, complete and genuine: nothing was downloaded."""


@dataclass(frozen=True)
class _Trust:
    """What a server is held to, once its key lists are shown to follow from what is known."""

    key_list: KeyList
    before: Publisher | None
    """What was known of the same publisher; None where he is new."""


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


def parse_address(text: str) -> tuple[str, Reference]:
    """Reads the address of a dataset's page, ``https://HOST/datasets/NAMESPACE/NAME[/vN]``.

    The server's own address, and what to get there. Raises ``ValueError`` on anything else.
    """
    parts = urlsplit(text)
    prefix, found, rest = parts.path.partition("/datasets/")
    names = rest.strip("/").split("/")
    if not found or parts.query or parts.fragment or len(names) not in (2, 3):
        raise ValueError("the address of a page is https://HOST/datasets/NAMESPACE/NAME[/vN]")
    reference = parse_reference("/".join(names[:2]) + "".join(f"@{one}" for one in names[2:]))
    return origin(text) + prefix, reference


def news_of_keys(fetched: Fetched, *, url: str, given: bool) -> list[str]:
    """What a person must be told of the keys now trusted; ``given``: he named the key himself."""
    lines = []
    if fetched.newly_pinned:
        lines += [
            f"key {key_id(fetched.key)} of {origin(url)} is trusted from now on",
            f"  and pinned in {known_publishers_file()}",
        ]
        if not given:
            lines.append("  (first use: compare it with the key the publisher tells you)")
    if fetched.rotated:
        lines.append(f"{origin(url)} has new keys; they follow from those pinned")
    return lines


def get(
    reference: Reference,
    *,
    url: str,
    to: Path | None = None,
    key: Ed25519PublicKey | None = None,
    token: str | None = None,
    on_progress: Progress | None = None,
    say: Say = lambda _: None,
) -> Fetched:
    """Downloads a release, verifies it, and puts it at ``to`` (default ``./NAME-vN``).

    ``key`` is the publisher's where the caller knows it; else the key list pinned to the server,
    else the one the server shows, which is then pinned. Raises the ``ReleaseError`` that fits and
    leaves nothing at the destination.
    """
    with open_session(url, token=token, say=say) as session:
        trust = _trust(session, url=url, key=key)
        head = _head(session, reference, url=url, trust=trust)
        documents, revision, verified = _documents(
            session, reference, url=url, trust=trust, head=head
        )
        version = verified.version
        check_history(trust.before, version, newest=reference.newest, withdrawn=set(head.withdrawn))
        folder = to or Path(f"{version.name}-v{version.number}")
        already_there = is_there(folder, verified, trust.key_list)
        if not already_there:
            deliver(
                session,
                address=lambda path: _file_url(reference, url=url, revision=revision, path=path),
                folder=folder,
                documents=documents,
                verified=verified,
                key_list=trust.key_list,
                on_progress=on_progress,
            )
    remember(url, before=trust.before, key_list=trust.key_list, head=head, version=version)
    known = trust.before.key_list if trust.before else None
    return Fetched(
        folder=folder,
        verified=verified,
        key=trust.key_list.release,
        newly_pinned=trust.before is None,
        rotated=known is not None and known.sequence < trust.key_list.sequence,
        already_there=already_there,
    )


def newest_number(
    reference: Reference, *, url: str, key: Ed25519PublicKey | None = None, token: str | None = None
) -> int:
    """The number of a dataset's newest version, by its signed head; raises as ``get`` does."""
    with open_session(url, token=token) as session:
        trust = _trust(session, url=url, key=key)
        return _head(session, reference, url=url, trust=trust).number


def catalogue(url: str, *, token: str | None = None) -> dict[str, Any]:
    """The datasets a server lists; unverified."""
    with open_session(url, token=token) as session:
        return _object(fetch_json(session, f"{url.rstrip('/')}/api/datasets"))


def describe(reference: Reference, *, url: str, token: str | None = None) -> dict[str, Any]:
    """What a server says of a dataset's version; unverified."""
    with open_session(url, token=token) as session:
        address = f"{_api(reference, url=url)}/revision/{reference.revision}"
        return _object(fetch_json(session, address))


def _api(reference: Reference, *, url: str) -> str:
    return f"{url.rstrip('/')}/api/datasets/{reference.namespace}/{reference.name}"


def _object(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise NetworkError("api/datasets", "the server's answer is not what this client expects")
    return document


def _trust(session: Session, *, url: str, key: Ed25519PublicKey | None) -> _Trust:
    """The key list to hold the server to; ``key``, given by hand, outweighs what is pinned."""
    address = f"{url.rstrip('/')}/api/publisher/keys"
    content, _ = fetch_small(session, address, name=KEYS, limit=MAX_CHAIN_BYTES)
    chain = read_chain(content)
    known = known_publisher(url)
    seen = known.key_list if known else None
    if key is None:
        pinned = decode_key(known.key) if known else None
        return _Trust(follow(chain, key=pinned, seen=seen), before=known)
    newest = follow(chain, key=key, seen=None)
    same = known is not None and (
        encode_key(key) == known.key
        if seen is None
        else seen.sequence <= len(chain) and chain[seen.sequence - 1].digest() == seen.digest()
    )
    return _Trust(newest, before=known if same else None)


def _head(session: Session, reference: Reference, *, url: str, trust: _Trust) -> Head:
    content, _ = fetch_small(session, f"{_api(reference, url=url)}/head", name=HEAD)
    head = read_head(
        content,
        namespace=reference.namespace,
        name=reference.name,
        key=trust.key_list.head,
        now=datetime.now(UTC),
    )
    check_head(trust.before, head)
    if reference.newest and head.number == 0:
        raise WithdrawnError(
            reference.name, "every version was withdrawn", "see `distilled info --from URL`"
        )
    return head


def _documents(
    session: Session, reference: Reference, *, url: str, trust: _Trust, head: Head
) -> tuple[dict[str, bytes], str, Verified]:
    """The verified documents, and the revision under which to fetch the rest."""
    # The newest is asked for by the number its head names: a version published meanwhile is none.
    asked = f"v{head.number}" if reference.newest else reference.revision
    address = _file_url(reference, url=url, revision=asked, path=MANIFEST)
    manifest, headers = fetch_small(session, address, name=MANIFEST)
    # From here on by commit, so that no two versions can mix.
    commit = headers.get("X-Repo-Commit", "")
    revision = commit if re.fullmatch("[0-9a-f]{40}", commit) else asked
    listed = _listed(session, reference, url=url, revision=revision)
    documents = {MANIFEST: manifest}
    for name in DOCUMENTS:
        if name == MANIFEST or (name not in REQUIRED and name not in listed):
            continue
        address = _file_url(reference, url=url, revision=revision, path=name)
        try:
            documents[name], _ = fetch_small(session, address, name=name)
        except NotFoundError:
            fault = UnsignedError if name.endswith(".sig") else MissingFileError
            raise fault(name, "is missing on the server", "tell the publisher") from None
    verified = verify_documents(
        manifest=documents[MANIFEST],
        manifest_signature=documents[MANIFEST_SIGNATURE],
        version=documents[VERSION],
        version_signature=documents[VERSION_SIGNATURE],
        keys=trust.key_list.trusted,
        revoked=trust.key_list.revoked,
    )
    _check_asked_for(reference, verified, head=head)
    signed = {file.path for file in verified.manifest.files}
    for name in sorted(listed - signed - set(DOCUMENTS)):
        raise ExtraFileError(
            name, "is offered with this release and is not part of it", "tell the publisher"
        )
    return documents, revision, verified


def _listed(session: Session, reference: Reference, *, url: str, revision: str) -> set[str]:
    """The names of the files that the server says the version has."""
    address = f"{_api(reference, url=url)}/tree/{revision}"
    try:
        return {str(entry["path"])[:200] for entry in fetch_json(session, address)}
    except (TypeError, KeyError):
        raise NetworkError(address, "the answer is no list of files") from None


def _file_url(reference: Reference, *, url: str, revision: str, path: str) -> str:
    dataset = f"{reference.namespace}/{reference.name}"
    return f"{url.rstrip('/')}/datasets/{dataset}/resolve/{revision}/{path}"


def _check_asked_for(reference: Reference, verified: Verified, *, head: Head) -> None:
    version = verified.version
    given = f"{version.namespace}/{version.name}@v{version.number}"
    revision = f"v{head.number}" if reference.newest else reference.revision
    asked = f"{reference.namespace}/{reference.name}@{revision}"
    same_version = (
        (reference.newest and version.number == head.number)
        or reference.revision == f"v{version.number}"
        or reference.revision == verified.digest[:40]
    )
    if (version.namespace, version.name) != (reference.namespace, reference.name) or (
        not same_version
    ):
        raise SwappedVersionError(
            VERSION, f"the server sent {given} in place of {asked}", "tell the publisher"
        )
    if version.number == head.number and verified.digest != head.manifest_sha256:
        raise SwappedVersionError(
            VERSION, f"{given} is not the one that the server's head names", "tell the publisher"
        )
    if version.number in head.withdrawn:
        raise WithdrawnError(
            given, "was withdrawn by its publisher", "use another version: `distilled info`"
        )
