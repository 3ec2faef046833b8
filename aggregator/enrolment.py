"""Sites and their keys: what a hospital hands over once, and what the SuperLink is told of it.

``sites/NAME.json`` is the record, ``revoked/NAME-….json`` that of a site whose keys are refused for
good; the SuperLink's own database follows both, at once where the SuperLink is up and at the next
``aggregator up`` where it is not.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from pydantic import ValidationError

from aggregator.coordinators import coordinators
from aggregator.heard import read_heard
from aggregator.home import AggregatorHome
from aggregator.superlink import SuperLink, SuperLinkError, superlink
from shared.contract import Member
from shared.durable import sync_folder, write_durably
from shared.enrolment import MAX_BYTES, Enrolment, Kit
from shared.frozen import explain
from shared.release.keys import key_id, read_public_key


class EnrolmentError(ValueError):
    """An enrolment that cannot be accepted; names the file, the field and the fix."""


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
    by another key, a key by another name, or where a key has been revoked.
    """
    for gone in revoked_sites(home):
        if _share_a_key(gone, enrolment):
            raise EnrolmentError(
                f"this key was revoked, as site {gone.name}: let the site make a new home "
                "(`site-agent init --home FOLDER`) and hand over the enrolment.json of that"
            )
    for other in enrolled_sites(home):
        same_name = other.name == enrolment.name
        same_key = other.key_fields() == enrolment.key_fields()
        keeps_signing = enrolment.signing_public_key in (None, other.signing_public_key)
        if same_name and same_key and keeps_signing:
            return False
        if same_name and same_key and other.signing_public_key is None:
            break
        if same_name:
            raise EnrolmentError(
                f"site {enrolment.name} is enrolled with another key: let the site choose another "
                f"name, or `aggregator site revoke {other.name}` if the old key is retired"
            )
        if _share_a_key(other, enrolment):
            raise EnrolmentError(f"this key is enrolled already, as site {other.name}")
    write_durably(home.sites / f"{enrolment.name}.json", _record(enrolment))
    return True


def write_kit(home: AggregatorHome, enrolment: Enrolment) -> Path:
    """Writes ``kits/NAME.kit.json``, for the site to join with; gives its path. Public parts only.

    Raises ``LocalError`` where the home's release key is damaged.
    """
    kit = Kit(
        site=enrolment.name,
        enrolment=enrolment.digest(),
        aggregator=home.settings.public_address,
        ca=(home.tls / "ca.crt").read_text("ascii"),
        release_key=key_id(read_public_key(home.release_key.with_suffix(".pub"))),
        coordinators=tuple(one.key for one in coordinators(home) if not one.revoked),
    )
    path = home.kits / f"{enrolment.name}.kit.json"
    write_durably(path, kit.model_dump_json(indent=2).encode() + b"\n", mode=0o644)
    return path


def revoke_site(home: AggregatorHome, name: str) -> bool:
    """Moves the site's record to the revoked ones; gives whether it was enrolled until now.

    Its keys are never taken again. Raises ``EnrolmentError`` where no such site is known.
    """
    found = next((site for site in enrolled_sites(home) if site.name == name), None)
    if found is None:
        if any(site.name == name for site in revoked_sites(home)):
            return False
        known = ", ".join(site.name for site in enrolled_sites(home)) or "none"
        raise EnrolmentError(f"no site {name} is enrolled (enrolled: {known})")
    # First: a crash in between leaves a site that is refused, not one that is forgotten.
    write_durably(home.revoked / f"{name}-{found.digest()[:16]}.json", _record(found))
    (home.sites / f"{name}.json").unlink()
    sync_folder(home.sites)
    (home.kits / f"{name}.kit.json").unlink(missing_ok=True)
    return True


def _record(enrolment: Enrolment) -> bytes:
    return json.dumps(enrolment.model_dump(mode="json"), indent=2).encode() + b"\n"


def _share_a_key(one: Enrolment, other: Enrolment) -> bool:
    same_signing = one.signing_public_key == other.signing_public_key is not None
    return one.key_fields() == other.key_fields() or same_signing


def enrolled_sites(home: AggregatorHome) -> list[Enrolment]:
    """The recorded sites, by name, without those revoked since.

    Raises ``EnrolmentError`` on a damaged record.
    """
    gone = [site.key_fields() for site in revoked_sites(home)]
    recorded = [read_enrolment(path) for path in sorted(home.sites.glob("[!.]*.json"))]
    return [site for site in recorded if site.key_fields() not in gone]


def revoked_sites(home: AggregatorHome) -> list[Enrolment]:
    """The sites whose keys are refused; raises ``EnrolmentError`` on a damaged record."""
    return [read_enrolment(path) for path in sorted(home.revoked.glob("[!.]*.json"))]


@dataclass(frozen=True)
class SiteState:
    """A site as `aggregator site list` shows it."""

    name: str
    state: Literal["online", "offline", "unknown", "revoked"]
    """Unknown: the SuperLink is not up."""
    key: str
    """The digest of its enrolment, 16 digits."""
    version: str | None = None
    """Of its agent, when it was last asked about a contract; as the rest, None where not told."""
    policy: str | None = None
    """The digest of its policy then."""
    heard: str | None = None
    """When that was: ISO 8601, UTC."""


def site_states(home: AggregatorHome) -> list[SiteState]:
    """Enrolled sites, then revoked ones, by name; raises ``EnrolmentError``."""
    try:
        with superlink(home) as link:
            online = {node.public_key for node in link.nodes() if node.online}
    except SuperLinkError:
        online = None
    states: list[SiteState] = []
    heard = read_heard(home)
    for site in enrolled_sites(home):
        key = public_key_bytes(site, source=home.sites / f"{site.name}.json")
        state = SiteState(site.name, _state(key, online), site.digest()[:16])
        if (said := heard.get(site.name)) is not None:
            at = said.at.isoformat()
            state = replace(state, version=said.version, policy=said.policy, heard=at)
        states.append(state)
    return states + [SiteState(s.name, "revoked", s.digest()[:16]) for s in revoked_sites(home)]


def _state(key: bytes, online: set[bytes] | None) -> Literal["online", "offline", "unknown"]:
    if online is None:
        return "unknown"
    return "online" if key in online else "offline"


def revoked_keys(home: AggregatorHome) -> list[bytes]:
    """Their keys, as the SuperLink keeps them; raises ``EnrolmentError``."""
    return [public_key_bytes(site, source=home.revoked) for site in revoked_sites(home)]


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
    """Tells the SuperLink whom to accept and whom no more; gives the names that it did not know.

    Raises ``EnrolmentError`` or ``SuperLinkError``.
    """
    nodes = link.nodes()
    refused = set(revoked_keys(home))
    for node in nodes:
        if node.public_key in refused:
            link.unregister(node.id)
    known = {node.public_key for node in nodes}
    added = []
    for enrolment in enrolled_sites(home):
        key = public_key_bytes(enrolment, source=home.sites / f"{enrolment.name}.json")
        if key not in known:
            link.register(name=enrolment.name, public_key=key)
            added.append(enrolment.name)
    return added
