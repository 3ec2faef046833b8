"""Publishers this user trusts: their keys, pinned at first use, and the newest versions seen.

One JSON file, ``known-publishers.json``, in ``~/.config/fedstill`` (or the folder that the
environment variable FEDSTILL_CONFIG names), by the server's origin. It is public information, but
who can write it decides what is trusted.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field, ValidationError

from shared.durable import write_durably
from shared.frozen import Frozen
from shared.release.errors import LocalError, RollbackError, SwappedVersionError
from shared.release.keys import decode_key, encode_key
from shared.release.manifest import VERSION, Sha256, VersionRecord


class Publisher(Frozen):
    """One server: its pinned key and, by dataset, the digest of every version seen."""

    key: str
    seen: dict[str, dict[int, Sha256]] = Field(default_factory=dict)


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


def pinned_key(url: str) -> Ed25519PublicKey | None:
    """The key pinned to a server, or None."""
    publisher = read_publishers().publishers.get(origin(url))
    return decode_key(publisher.key) if publisher else None


def pinned_keys() -> Sequence[Ed25519PublicKey]:
    """Every pinned key."""
    return [decode_key(publisher.key) for publisher in read_publishers().publishers.values()]


def check_history(url: str, key: Ed25519PublicKey, version: VersionRecord, *, newest: bool) -> None:
    """Compares an offered version with what this server offered before under the same key.

    Raises ``SwappedVersionError`` where a number now stands for other content, ``RollbackError``
    where the server says an older version is its ``newest``.
    """
    publisher = read_publishers().publishers.get(origin(url))
    same_key = publisher is not None and publisher.key == encode_key(key)
    seen = publisher.seen.get(_dataset(version), {}) if publisher and same_key else {}
    known = seen.get(version.number)
    if known is not None and known != version.manifest_sha256:
        raise SwappedVersionError(
            VERSION,
            f"version {version.number} was {known[:16]} before and is now "
            f"{version.manifest_sha256[:16]}: a published version never changes",
            "ask the publisher",
        )
    if newest and seen and version.number < max(seen):
        raise RollbackError(
            VERSION,
            f"the server offers version {version.number} as the newest, "
            f"but version {max(seen)} was seen before",
            f"ask for it by number ({version.name}@v{version.number}) if that is what you want",
        )


def remember(url: str, key: Ed25519PublicKey, version: VersionRecord) -> None:
    """Pins ``key`` to the server and records the verified version, atomically."""
    known = read_publishers()
    old = known.publishers.get(origin(url))
    encoded = encode_key(key)
    seen = dict(old.seen) if old and old.key == encoded else {}
    dataset = _dataset(version)
    seen[dataset] = {**seen.get(dataset, {}), version.number: version.manifest_sha256}
    publisher = Publisher(key=encoded, seen=seen)
    _write(KnownPublishers(publishers={**known.publishers, origin(url): publisher}))


def _dataset(version: VersionRecord) -> str:
    return f"{version.namespace}/{version.name}"


def _write(known: KnownPublishers) -> None:
    path = known_publishers_file()
    text = json.dumps(known.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
    try:
        write_durably(path, text.encode("utf-8"))
    except OSError as error:
        raise LocalError(str(path), f"cannot be written ({error.strerror})") from None
