"""The publisher's keys and the chain of lists that names them: made, rotated, revoked.

``keys/`` of the home has the release key (which may lie elsewhere but for publishing and for a new
list), the head key (online), and ``keys.json``, the chain that is served. A rotation is one step:
the new key waits as ``*.next.key`` until the list that names it is on disk, and then takes its
place; a crash in between is finished, or undone, when the keys are next used.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from shared.durable import sync_folder, write_durably
from shared.release.errors import LocalError
from shared.release.key_list import (
    KEYS,
    MAX_CHAIN_BYTES,
    MAX_LISTS,
    KeyChain,
    KeyList,
    ListedKey,
    RevokedKey,
    SignedKeyList,
    read_chain,
    sign_list,
)
from shared.release.keys import (
    decode_key,
    encode_key,
    key_id,
    read_private_key,
    read_public_key,
    write_key_pair,
)

Use = Literal["release", "head"]
EntryUse = Literal["release", "retired", "head"]


class PublisherKeyError(LocalError):
    """Keys that are not as they should be, or a change that cannot be made."""


class PublisherKeys:
    """The keys of one home, in its folder ``keys``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chain_file = folder / "keys.json"

    def private(self, use: Use) -> Path:
        """Where the private key lies."""
        return self.folder / f"{use}.key"

    def chain(self) -> KeyChain:
        """All lists, oldest first; raises ``PublisherKeyError``."""
        try:
            content = self.chain_file.read_bytes()
            read_chain(content)
            return KeyChain.model_validate(json.loads(content))
        except FileNotFoundError:
            raise PublisherKeyError(
                str(self.chain_file), "does not exist", "run `aggregator init`"
            ) from None
        except OSError as error:
            raise PublisherKeyError(
                str(self.chain_file), f"cannot be read ({error.strerror})"
            ) from None
        except ValidationError:
            raise PublisherKeyError(str(self.chain_file), "is damaged: restore it") from None

    def newest(self) -> KeyList:
        """The list in force."""
        return self.chain().lists[-1].listed

    def signer(self) -> Ed25519PrivateKey:
        """The release key, to sign with; raises ``LocalError`` where it is not the one listed."""
        self.ensure()
        return self._signer(self.newest())

    def _signer(self, newest: KeyList) -> Ed25519PrivateKey:
        key = read_private_key(self.private("release"))
        if encode_key(key.public_key()) != encode_key(newest.release):
            raise PublisherKeyError(
                str(self.private("release")),
                "is not the release key that the newest list names",
                "put that key back",
            )
        return key

    def ensure(self) -> None:
        """Makes the head key and the first list where there is none; finishes what a crash left."""
        if not self.chain_file.exists() and not self.private("release").exists():
            return
        with self.held():
            if self.chain_file.exists():
                self._settle()
                return
            if not self.private("head").exists():
                write_key_pair(self.private("head"), self.private("head").with_suffix(".pub"))
            release = read_private_key(self.private("release"))
            head = read_private_key(self.private("head"))
            listed = KeyList(
                sequence=1,
                previous=None,
                keys=(_entry(release, "release"), _entry(head, "head")),
            )
            self._write((sign_list(listed, [release]),))

    def rotate(self, use: Use) -> KeyList:
        """A new release key, the old one retired, or a new head key; the list that says so."""
        with self.held():
            self._settle()
            return self._replace({use}, revoked=())

    def revoke(
        self, name: str, *, reason: str, honoured: Callable[[str], Sequence[str]]
    ) -> KeyList:
        """Revokes the key of that fingerprint (or its beginning); one in force is replaced.

        ``honoured`` answers the SHA-256 of each VERSION.json of the key with that fingerprint that
        stays genuine.
        """
        with self.held():
            self._settle()
            found = [
                one for one in self.newest().keys if key_id(decode_key(one.key)).startswith(name)
            ]
            if len(found) != 1 or len(name) < 8:
                raise PublisherKeyError(
                    name,
                    "names no one key in force or retired",
                    "give its fingerprint, 8 digits at least: `aggregator key list`",
                )
            entry = found[0]
            try:
                revoked = RevokedKey(
                    key=entry.key,
                    reason=reason,
                    honoured=tuple(sorted(honoured(key_id(decode_key(entry.key))))),
                )
            except ValidationError:
                raise PublisherKeyError(
                    name, "cannot be revoked with that reason, or for so many versions"
                ) from None
            uses: set[str] = set() if entry.use == "retired" else {str(entry.use)}
            return self._replace(uses, revoked=(revoked,))

    def _replace(self, uses: set[str], *, revoked: tuple[RevokedKey, ...]) -> KeyList:
        """Appends the list in which the keys of ``uses`` are new."""
        chain = self.chain().lists
        before = chain[-1].listed
        if before.sequence == MAX_LISTS:
            raise PublisherKeyError("keys.json", f"has {MAX_LISTS} lists: there can be no more")
        signer = self._signer(before)
        gone = {one.key for one in revoked}
        keys, signers = [], [signer]
        for entry in before.keys:
            if entry.use in uses:
                fresh = self._next(entry.use)
                keys.append(_entry(fresh, entry.use))
                if entry.use == "release":
                    signers.append(fresh)
                    keys.append(entry.model_copy(update={"use": "retired"}))
            else:
                keys.append(entry)
        listed = KeyList(
            sequence=before.sequence + 1,
            previous=before.digest(),
            keys=tuple(one for one in keys if one.key not in gone),
            revoked=before.revoked + revoked,
        )
        self._write((*chain, sign_list(listed, signers)))
        self._settle()
        return listed

    def _next(self, use: str) -> Ed25519PrivateKey:
        path = self.folder / f"{use}.next.key"
        write_key_pair(path, path.with_suffix(".pub"))
        return read_private_key(path)

    def _settle(self) -> None:
        """Puts a waiting key in its place if the newest list names it; else removes it."""
        newest = self.newest()
        for use, named in (("release", newest.release), ("head", newest.head)):
            waiting = self.folder / f"{use}.next.key"
            public = waiting.with_suffix(".pub")
            if waiting.exists():
                key = read_private_key(waiting).public_key()
                if encode_key(key) == encode_key(named):
                    waiting.replace(self.folder / f"{use}.key")
                else:
                    waiting.unlink()
            if public.exists():
                if encode_key(read_public_key(public)) == encode_key(named):
                    public.replace(self.folder / f"{use}.pub")
                else:
                    public.unlink()
        sync_folder(self.folder)

    def _write(self, lists: tuple[SignedKeyList, ...]) -> None:
        content = json.dumps(KeyChain(lists=lists).model_dump(mode="json"), indent=1).encode()
        read_chain(content)  # what researchers would refuse is never served
        if len(content) > MAX_CHAIN_BYTES:
            raise PublisherKeyError(
                KEYS, "would be larger than researchers read", "honour fewer versions"
            )
        write_durably(self.chain_file, content, mode=0o644)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else changes the keys meanwhile; raises ``PublisherKeyError``."""
        try:
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise PublisherKeyError(str(self.folder), f"{error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        except OSError as error:
            raise PublisherKeyError(
                str(error.filename), f"cannot be written ({error.strerror})"
            ) from None
        finally:
            os.close(descriptor)


def _entry(key: Ed25519PrivateKey, use: EntryUse) -> ListedKey:
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    return ListedKey(key=encode_key(key.public_key()), use=use, since=today)
