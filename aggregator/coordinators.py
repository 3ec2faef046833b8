"""Coordinators and the keys they sign contracts with: one a person, made on this machine.

``coordinators/NAME.key`` signs (PEM, mode 0600), ``NAME.pub`` is its public half; of one who was
revoked ``NAME.revoked`` is left, with the public key. Sites pin the public keys in policy.toml:
what a site takes is the site's to say.
"""

import re
from dataclasses import dataclass

from aggregator.home import FIRST_COORDINATOR, AggregatorHome
from shared.durable import sync_folder, write_durably
from shared.enrolment import MAX_COORDINATORS
from shared.mandate import Mandate, sign_contract
from shared.release.keys import read_private_key, read_public_key, write_key_pair


class CoordinatorError(ValueError):
    """A coordinator that is unknown, or a name that is taken; says which and the fix."""


@dataclass(frozen=True)
class Coordinator:
    """Somebody who may launch runs; or could, until revoked."""

    name: str
    key: str
    """The public key, hexadecimal, as policy.toml lists it."""
    revoked: bool = False


def coordinators(home: AggregatorHome) -> list[Coordinator]:
    """Those whose keys sign, by name, then those revoked; may raise ``LocalError``."""
    signing = [
        Coordinator(path.stem, read_public_key(path).public_bytes_raw().hex())
        for path in sorted(home.coordinators.glob("[!.]*.pub"))
        if path.with_suffix(".key").exists()
    ]
    gone = [
        Coordinator(path.stem, path.read_text("ascii").strip(), revoked=True)
        for path in sorted(home.coordinators.glob("[!.]*.revoked"))
    ]
    return signing + gone


def add_coordinator(home: AggregatorHome, name: str) -> Coordinator:
    """Makes a key for ``name``. Raises ``CoordinatorError`` where the name is or was in use."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", name):
        raise CoordinatorError(f"NAME {name!r}: use a-z, 0-9 and hyphens")
    known = coordinators(home)
    if any(one.name == name for one in known):
        raise CoordinatorError(f"{name} has or had a key already: choose another name")
    if sum(not one.revoked for one in known) >= MAX_COORDINATORS:
        raise CoordinatorError(f"{MAX_COORDINATORS} coordinators are the most: revoke one first")
    path = home.coordinators / f"{name}.key"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    made = write_key_pair(path, path.with_suffix(".pub"))
    return Coordinator(name, made.public_bytes_raw().hex())


def revoke_coordinator(home: AggregatorHome, name: str) -> Coordinator:
    """Removes the key that signs for ``name``, for good.

    A site goes on to take what the key signed until its policy.toml drops it. Raises
    ``CoordinatorError`` where no such key signs.
    """
    found = _signing(home, name)
    file = home.coordinators / name
    write_durably(file.with_suffix(".revoked"), found.key.encode() + b"\n")
    file.with_suffix(".key").unlink()
    file.with_suffix(".pub").unlink()
    sync_folder(home.coordinators)
    return Coordinator(name, found.key, revoked=True)


def mandate_of(home: AggregatorHome, name: str | None, *, contract_digest: str) -> Mandate:
    """The signature of ``name``, or without one of the only coordinator, or the first.

    Raises ``CoordinatorError``, or ``LocalError`` on a damaged key.
    """
    signing = [one for one in coordinators(home) if not one.revoked]
    if name is None:
        if not signing:
            raise CoordinatorError(
                "nobody signs contracts here: `aggregator coordinator add NAME`, and tell the "
                "sites the key"
            )
        names = [one.name for one in signing]
        if len(signing) > 1 and FIRST_COORDINATOR not in names:
            raise CoordinatorError(f"name who signs, --coordinator: {', '.join(names)}")
        name = FIRST_COORDINATOR if FIRST_COORDINATOR in names else names[0]
    _signing(home, name)
    key = read_private_key(home.coordinators / f"{name}.key")
    return sign_contract(contract_digest, key)


def _signing(home: AggregatorHome, name: str) -> Coordinator:
    signing = {one.name: one for one in coordinators(home) if not one.revoked}
    if name not in signing:
        known = ", ".join(signing) or "nobody"
        raise CoordinatorError(f"no coordinator {name} signs here (who does: {known})")
    return signing[name]
