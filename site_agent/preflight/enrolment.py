"""Checks of what enrolment left: private keys that are private, the kit, whom it is to answer."""

import datetime
import os
import stat
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
)

from shared.enrolment import Kit
from shared.findings import Finding, failed, good, unjudged, warning
from shared.release.errors import LocalError
from shared.release.keys import read_private_key
from site_agent.kit import KIT_FILE, KitError, check_kit, own_enrolment, read_kit
from site_agent.settings import SettingsError, SiteSettings

CA_DAYS = 30
"""An authority's certificate with fewer days left is worth a word."""


def keys(settings: SiteSettings, *, worker: bool = True, connector: bool = True) -> Finding:
    """Whether all keys are there, whole, this user's alone, and those that were handed over.

    Of a part that has a home of its own, those of the worker or the connector alone.
    """
    name = "keys"
    folder = settings.key_path.parent
    own = [settings.key_path] * connector
    own += [settings.signing_key_path, settings.pseudonym_key_path] * worker
    for path in (folder, *own):
        problem = _exposure(path)
        if problem is not None:
            return failed(name, *problem)
    try:
        handed = own_enrolment(settings)
        match = (not connector or _flower_fields(settings) == handed.key_fields()) and (
            not worker
            or read_private_key(settings.signing_key_path).public_key().public_bytes_raw().hex()
            == handed.signing_public_key
        )
    except (LocalError, SettingsError) as error:
        return failed(name, str(error), "restore it, or make a new home with `site-agent init`")
    except ValueError:
        return failed(
            name,
            f"{settings.key_path} is not an OpenSSH key",
            "restore it, or make a new home with `site-agent init`",
        )
    if not match:
        return failed(
            name,
            "enrolment.json has other public keys than those of keys/",
            "restore the keys, or make a new home with `site-agent init` and enrol that",
        )
    return good(name, "private, and those of enrolment.json")


def _flower_fields(settings: SiteSettings) -> list[str]:
    key = load_ssh_private_key(settings.key_path.read_bytes(), password=None).public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode().split()[:2]


def _exposure(path: Path) -> tuple[str, str] | None:
    """What is wrong with a key's file or the keys' folder, and the fix; None where nothing is."""
    folder = path.name == "keys"
    try:
        status = path.lstat()
    except FileNotFoundError:
        return f"{path} is missing", "restore it, or make a new home with `site-agent init`"
    except PermissionError:
        return f"{path} is not readable", "run the preflight as the user who runs the site"
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(status.st_mode):
        return f"{path} is not a {'folder' if folder else 'file'}", "put the key itself there"
    if status.st_uid != os.geteuid():
        return (
            f"{path} belongs to another user",
            f"run the preflight as the user who runs the site, or `chown` {path}",
        )
    if status.st_mode & 0o077:
        mode = "700" if folder else "600"
        return (
            f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):o})",
            f"chmod {mode} {path}",
        )
    return None


def kit(settings: SiteSettings) -> Finding:
    """Whether the site has joined, with a kit that still holds."""
    name, path = "kit", settings.home / KIT_FILE
    if not path.exists():
        return unjudged(
            name,
            "this site has not joined yet",
            "hand enrolment.json to the coordinator, and `site-agent join` the kit that comes back",
        )
    remedy = "`site-agent join` the kit again, or a new one of the coordinator's"
    try:
        read = read_kit(path)
        authority = check_kit(read, settings, source=path)
        installed = settings.ca_path.read_bytes()
    except (KitError, SettingsError) as error:
        return failed(name, str(error), remedy)
    except OSError as error:
        return failed(name, f"{settings.ca_path}: {error.strerror}", remedy)
    if installed != read.ca.encode("ascii"):
        return failed(name, f"{settings.ca_path} is not the kit's", f"{remedy}, with --replace")
    return _authority(authority)


def coordinators(settings: SiteSettings) -> Finding:
    """Whether ``policy.toml`` names somebody whose contracts are answered, and of the kit."""
    check, pinned = "coordinators", settings.policy.coordinators or ()
    kit = _kit_or_none(settings)
    if not pinned:
        problem = "policy.toml names none, so no contract is answered"
        if kit is None:
            return unjudged(check, problem, "`site-agent join` the kit, which names them")
        named = ", ".join(kit.coordinators) or "none: ask the coordinator for the public key"
        return failed(check, problem, f"add to `coordinators` in policy.toml: {named}")
    if own_signing_key(settings) in pinned:
        return failed(
            check,
            "a key in policy.toml, coordinators, is this site's own",
            "put the coordinator's public key there: the kit names it",
        )
    if len(set(pinned)) < len(pinned):
        return warning(check, "a key is there twice", "remove one from `coordinators`")
    if kit is not None and kit.coordinators and not set(pinned) & set(kit.coordinators):
        return warning(
            check,
            "none of the kit's is among policy.toml's coordinators",
            "compare the keys with the coordinator's, by another way than the kit came",
        )
    return good(check, f"{len(pinned)} {'key' if len(pinned) == 1 else 'keys'}")


def own_signing_key(settings: SiteSettings) -> str | None:
    """The public key that this site signs with, as handed over; None where that cannot be read."""
    try:
        return own_enrolment(settings).signing_public_key
    except SettingsError:
        return None


def _kit_or_none(settings: SiteSettings) -> Kit | None:
    try:
        return read_kit(settings.home / KIT_FILE)
    except KitError:
        return None


def _authority(certificate: x509.Certificate) -> Finding:
    left = (certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)).days
    if left < CA_DAYS:
        return warning(
            "kit",
            f"the aggregator's authority ends in {left} days",
            "ask the coordinator for a new kit, and `site-agent join` it with --replace",
        )
    return good("kit", f"joined; the authority's certificate is good for {left} days")
