"""Sites and their keys: what a hospital hands over once, and what the SuperLink is told of it.

``sites/NAME.json`` is the record; the SuperLink's own database follows it, at once where the
SuperLink is up and at the next ``aggregator up`` where it is not.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from pydantic import Field, ValidationError

from aggregator.home import AggregatorHome
from aggregator.superlink import SuperLink
from shared.contract import Hex32, Member
from shared.durable import write_durably
from shared.frozen import Frozen, Slug, explain

MAX_BYTES = 64 * 1024


class EnrolmentError(ValueError):
    """An enrolment that cannot be accepted; names the file, the field and the fix."""


class Enrolment(Frozen):
    """``enrolment.json`` of a site: public parts only."""

    version: Literal[1] = 1
    name: Slug
    flower_public_key: str = Field(
        max_length=1024, description="OpenSSH line of the site's ECDSA P-384 public key"
    )
    signing_public_key: Hex32 | None = Field(
        None, description="Ed25519, of secure sums; earlier versions have none"
    )


def read_enrolment(path: Path) -> Enrolment:
    """Reads and checks what a site sent; raises ``EnrolmentError``."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise EnrolmentError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > MAX_BYTES:
        raise EnrolmentError(f"{path}: is larger than {MAX_BYTES} bytes: not an enrolment")
    try:
        enrolment = Enrolment.model_validate_json(content)
    except ValidationError as error:
        raise EnrolmentError(
            f"{path}: {explain(error)}; ask the site for the enrolment.json of `site-agent init`"
        ) from None
    public_key_bytes(enrolment, source=path)
    return enrolment


def public_key_bytes(enrolment: Enrolment, *, source: Path) -> bytes:
    """The key as the SuperLink keeps it; raises ``EnrolmentError``."""
    try:
        key = load_ssh_public_key(enrolment.flower_public_key.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise EnrolmentError(f"{source}: flower_public_key: is not an OpenSSH key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise EnrolmentError(f"{source}: flower_public_key: is not an ECDSA P-384 key")
    return bytes(public_key_to_bytes(key))


def record_site(home: AggregatorHome, enrolment: Enrolment) -> bool:
    """Writes ``sites/NAME.json``; gives whether it is new.

    A record without a signing key takes one over. Raises ``EnrolmentError`` where the name is taken
    by another key, or a key by another name.
    """
    for other in enrolled_sites(home):
        same_name = other.name == enrolment.name
        same_key = _key_fields(other) == _key_fields(enrolment)
        keeps_signing = enrolment.signing_public_key in (None, other.signing_public_key)
        if same_name and same_key and keeps_signing:
            return False
        if same_name and same_key and other.signing_public_key is None:
            break
        if same_name:
            raise EnrolmentError(
                f"site {enrolment.name} is enrolled with another key: let the site choose another "
                f"name, or remove {home.sites / f'{other.name}.json'} if the old key is retired"
            )
        same_signing = enrolment.signing_public_key == other.signing_public_key is not None
        if same_key or same_signing:
            raise EnrolmentError(f"this key is enrolled already, as site {other.name}")
    content = json.dumps(enrolment.model_dump(mode="json"), indent=2).encode() + b"\n"
    write_durably(home.sites / f"{enrolment.name}.json", content)
    return True


def _key_fields(enrolment: Enrolment) -> list[str]:
    return enrolment.flower_public_key.split()[:2]  # without the comment


def enrolled_sites(home: AggregatorHome) -> list[Enrolment]:
    """The recorded sites, by name; raises ``EnrolmentError`` on a damaged record."""
    return [read_enrolment(path) for path in sorted(home.sites.glob("[!.]*.json"))]


def members_of(sites: Sequence[Enrolment]) -> tuple[Member, ...]:
    """The sites as members of a secure sum, by name.

    Raises ``EnrolmentError`` naming those that have handed over no signing key.
    """
    without = sorted(site.name for site in sites if site.signing_public_key is None)
    if without:
        raise EnrolmentError(
            "granularity federation needs signing keys, and none is known of "
            f"{', '.join(without)}: "
            "let the site start this version's worker and send its enrolment.json again, then "
            "`aggregator site add` it"
        )
    return tuple(
        Member(name=site.name, signing_key=site.signing_public_key)
        for site in sorted(sites, key=lambda site: site.name)
        if site.signing_public_key is not None
    )


def register_sites(home: AggregatorHome, link: SuperLink) -> list[str]:
    """Tells the SuperLink of every recorded site it does not know; gives their names.

    Raises ``EnrolmentError`` or ``SuperLinkError``.
    """
    known = {node.public_key for node in link.nodes()}
    added = []
    for enrolment in enrolled_sites(home):
        key = public_key_bytes(enrolment, source=home.sites / f"{enrolment.name}.json")
        if key not in known:
            link.register(name=enrolment.name, public_key=key)
            added.append(enrolment.name)
    return added
