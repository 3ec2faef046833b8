"""Publishers this user trusts: their key lists, pinned at first use, and what was seen of them.

One JSON file, ``known-publishers.json``, in ``~/.config/fedstill`` (or the folder that the
environment variable FEDSTILL_CONFIG names), by the server's origin. It is public information, but
who can write it decides what is trusted.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field, ValidationError

from shared.durable import write_durably
from shared.frozen import Frozen
from shared.release.errors import LocalError, RollbackError, SwappedVersionError
from shared.release.head import HEAD, Head
from shared.release.key_list import KeyList, RevokedKey
from shared.release.keys import decode_key, encode_key
from shared.release.manifest import VERSION, Sha256, VersionRecord


class Publisher(Frozen):
    """One server: its release key and key list, every version seen and the last head by dataset."""

    key: str
    key_list: KeyList | None = None
    seen: dict[str, dict[int, Sha256]] = Field(default_factory=dict)
    heads: dict[str, int] = Field(default_factory=dict)


class KnownPublishers(Frozen):
    """The whole file."""

    format: Literal["fedstill-known-publishers/1"] = "fedstill-known-publishers/1"
    publishers: dict[str, Publisher] = Field(default_factory=dict)


def config_folder() -> Path:
    """The user's configuration folder; may not exist yet."""
    override = os.environ.get("FEDSTILL_CONFIG")
    return Path(override) if override else Path.home() / ".config" / "fedstill"


def known_publishers_file() -> Path:
    """Where pinned keys are kept."""
    return config_folder() / "known-publishers.json"


def origin(url: str) -> str:
    """``https://host:port`` of a URL: what a key is pinned to.

    Raises ``ValueError`` on anything but http and https.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an http or https URL")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{parts.scheme}://{host}:{port}"


def read_publishers() -> KnownPublishers:
    """The pinned keys, none where the file is absent; raises ``LocalError`` where it is damaged."""
    path = known_publishers_file()
    try:
        known = KnownPublishers.model_validate_json(path.read_bytes())
        for publisher in known.publishers.values():
            decode_key(publisher.key)
    except FileNotFoundError:
        return KnownPublishers()
    except OSError as error:
        raise LocalError(str(path), f"cannot be read ({error.strerror})") from None
    except (ValidationError, ValueError):
        raise LocalError(
            str(path), "is damaged", "restore it, or move it away to trust keys anew"
        ) from None
    return known


def known_publisher(url: str) -> Publisher | None:
    """What is known of a server, or None."""
    return read_publishers().publishers.get(origin(url))


def pinned_keys() -> Sequence[Ed25519PublicKey]:
    """Every key that releases may be signed with: of each publisher the one in force, and those
    retired."""
    keys: list[Ed25519PublicKey] = []
    for publisher in read_publishers().publishers.values():
        listed = publisher.key_list
        keys += listed.trusted if listed else [decode_key(publisher.key)]
    return keys


def revoked_keys() -> Sequence[RevokedKey]:
    """Every key that a known publisher has revoked."""
    lists = [one.key_list for one in read_publishers().publishers.values()]
    return [revoked for listed in lists if listed for revoked in listed.revoked]


def check_head(publisher: Publisher | None, head: Head) -> None:
    """Raises ``RollbackError`` where a later head of the dataset was seen before."""
    last = publisher.heads.get(f"{head.namespace}/{head.name}", 0) if publisher else 0
    if head.sequence < last:
        raise RollbackError(
            HEAD,
            f"the server shows state {head.sequence} of {head.name}, state {last} was seen before",
            "tell the publisher",
        )


def check_history(
    publisher: Publisher | None, version: VersionRecord, *, newest: bool, withdrawn: Set[int]
) -> None:
    """Compares an offered version with what this publisher offered before.

    Raises ``SwappedVersionError`` where a number now stands for other content, ``RollbackError``
    where the server says an older version is its ``newest`` though the later is not ``withdrawn``.
    """
    seen = publisher.seen.get(_dataset(version), {}) if publisher else {}
    known = seen.get(version.number)
    if known is not None and known != version.manifest_sha256:
        raise SwappedVersionError(
            VERSION,
            f"version {version.number} was {known[:16]} before and is now "
            f"{version.manifest_sha256[:16]}: a published version never changes",
            "ask the publisher",
        )
    later = max((number for number in seen if number not in withdrawn), default=0)
    if newest and version.number < later:
        raise RollbackError(
            VERSION,
            f"the server offers version {version.number} as the newest, "
            f"but version {later} was seen before",
            f"ask for it by number ({version.name}@v{version.number}) if that is what you want",
        )


def remember(
    url: str, *, before: Publisher | None, key_list: KeyList, head: Head, version: VersionRecord
) -> None:
    """Pins the key list to the server and records the verified version and head, atomically.

    ``before`` is what was known of the same publisher; None begins anew.
    """
    with _held():
        _remember(url, before=before, key_list=key_list, head=head, version=version)


def _remember(
    url: str, *, before: Publisher | None, key_list: KeyList, head: Head, version: VersionRecord
) -> None:
    known = read_publishers()
    present = known.publishers.get(origin(url))
    if present and (before or present.key_list == key_list):
        before = present  # another process may have seen more of this publisher meanwhile
        if present.key_list and present.key_list.sequence > key_list.sequence:
            key_list = present.key_list
    seen = dict(before.seen) if before else {}
    heads = dict(before.heads) if before else {}
    dataset = _dataset(version)
    seen[dataset] = {**seen.get(dataset, {}), version.number: version.manifest_sha256}
    heads[dataset] = max(head.sequence, heads.get(dataset, 0))
    publisher = Publisher(
        key=encode_key(key_list.release), key_list=key_list, seen=seen, heads=heads
    )
    _write(KnownPublishers(publishers={**known.publishers, origin(url): publisher}))


def _dataset(version: VersionRecord) -> str:
    return f"{version.namespace}/{version.name}"


@contextmanager
def _held() -> Iterator[None]:
    """Keeps other processes from writing what is known in between."""
    folder = config_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise LocalError(str(folder), f"cannot be written ({error.strerror})") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(known: KnownPublishers) -> None:
    path = known_publishers_file()
    text = json.dumps(known.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
    try:
        write_durably(path, text.encode("utf-8"))
    except OSError as error:
        raise LocalError(str(path), f"cannot be written ({error.strerror})") from None
