"""Joining: the aggregator's kit is checked, and its certificate installed.

A home that has joined holds ``kit.json`` and, from it, ``aggregator-ca.crt``, the only certificate
that this site trusts; a policy.toml that named no coordinator names those of the kit. The kit is
written last: with it, everything before is there.
"""

import datetime
import hashlib
import json
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError

from shared.durable import write_durably
from shared.enrolment import MAX_BYTES, Enrolment, Kit
from shared.frozen import explain
from site_agent.policy_file import name_coordinators
from site_agent.settings import SettingsError, SiteSettings

KIT_FILE = "kit.json"
ENROLMENT_FILE = "enrolment.json"


class KitError(ValueError):
    """A kit that this site cannot join with; names the file, the field and the fix."""


def join(settings: SiteSettings, path: Path, *, replace: bool) -> Kit:
    """Installs the kit in ``path``; the same kit again changes nothing.

    Another certificate than the one that is there is refused unless ``replace``: whoever holds its
    key could pass for the aggregator. Raises ``KitError``, ``PolicyError`` where policy.toml cannot
    be read or written, or ``SettingsError`` where the home's own enrolment.json is damaged.
    """
    kit = read_kit(path)
    certificate = check_kit(kit, settings, source=path)
    present = settings.ca_path.read_bytes() if settings.ca_path.exists() else None
    wanted = kit.ca.encode("ascii")
    if present not in (None, wanted) and not replace:
        raise KitError(
            f"{settings.ca_path}: is another certificate than the kit's, whose SHA-256 is "
            f"{fingerprint(certificate)}: ask the aggregator's operator, by another way than the "
            "kit came, whether that is theirs, then join with --replace"
        )
    content = kit.model_dump_json(indent=2).encode() + b"\n"
    kept = settings.home / KIT_FILE
    if present != wanted:
        write_durably(settings.ca_path, wanted, mode=0o644)
    name_coordinators(settings.home, kit.coordinators)
    if not kept.exists() or kept.read_bytes() != content:
        write_durably(kept, content, mode=0o644)
    return kit


def read_kit(path: Path) -> Kit:
    """Reads a kit; raises ``KitError`` where it is none."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise KitError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > MAX_BYTES:
        raise KitError(f"{path}: is larger than {MAX_BYTES} bytes: not a kit")
    try:
        return Kit.model_validate_json(content)
    except ValidationError as error:
        raise KitError(
            f"{path}: {explain(error)}; ask the aggregator's operator for the kit that "
            "`aggregator site add` writes"
        ) from None


def check_kit(kit: Kit, settings: SiteSettings, *, source: Path) -> x509.Certificate:
    """Whether ``kit`` answers this home's enrolment, for the aggregator of its settings, now.

    Gives the certificate in it. Raises ``KitError``, or ``SettingsError`` where the home's own
    enrolment.json is damaged.
    """
    own = own_enrolment(settings)
    if kit.site != own.name or kit.site != settings.name:
        raise KitError(f"{source}: site: is for {kit.site}, this home is {settings.name}'s")
    if kit.enrolment != own.digest():
        raise KitError(
            f"{source}: enrolment: answers another enrolment.json than this home's: hand over "
            f"{settings.home / ENROLMENT_FILE}, and join with the kit that comes back"
        )
    if kit.aggregator != settings.aggregator:
        raise KitError(
            f"{source}: aggregator: is {kit.aggregator}, in site.toml it is {settings.aggregator}: "
            "ask the aggregator's operator which is right, and mend that one"
        )
    return _authority(kit.ca, source=source)


def own_enrolment(settings: SiteSettings) -> Enrolment:
    """What this home handed over; raises ``SettingsError`` where it is damaged or missing."""
    path = settings.home / ENROLMENT_FILE
    remedy = "move site.toml away, `site-agent init` again (keys are kept), and move it back"
    try:
        return Enrolment.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise SettingsError(f"{path}: is missing: {remedy}") from None
    except ValueError:
        raise SettingsError(f"{path}: is damaged: {remedy}") from None


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 (hex) of its DER, as browsers and openssl show it."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def _authority(pem: str, *, source: Path) -> x509.Certificate:
    """The one certificate in ``pem``, where it can vouch for others and is valid now."""
    try:
        (certificate,) = x509.load_pem_x509_certificates(pem.encode())
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, x509.ExtensionNotFound):
        raise KitError(f"{source}: ca: is not one certificate of an authority, in PEM") from None
    if not constraints.ca:
        raise KitError(f"{source}: ca: is a certificate that may not vouch for others")
    now = datetime.datetime.now(datetime.UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise KitError(
            f"{source}: ca: is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d}, and here it is {now:%Y-%m-%d}: set the "
            "clock, or ask for a new kit"
        )
    return certificate
