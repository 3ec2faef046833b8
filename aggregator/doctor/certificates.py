"""Checks of what proves who the aggregator is: its CA, its certificate, the publisher's keys."""

import datetime
import ipaddress
import os
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from aggregator.certificates import LOOPBACK, RENEW_DAYS
from aggregator.coordinators import coordinators
from aggregator.home import AggregatorHome
from aggregator.occupancy import is_up
from aggregator.publisher_keys import PublisherKeyError, PublisherKeys
from shared.findings import Finding, failed, good, unjudged, warning
from shared.release.errors import LocalError
from shared.release.keys import encode_key, key_id, read_private_key, read_public_key

WARN_DAYS = RENEW_DAYS + 15
"""Before `up`, when it is started again, renews the certificate: there is time to plan it."""
CA_WARN_DAYS = 365
PUT_BACK = "put it back from a backup `--with-keys`"


def authority(home: AggregatorHome) -> Finding:
    """Whether the CA is there that all sites trust, and for how long."""
    check, place = "CA", home.tls / "ca.crt"
    found = _certificate(place)
    if isinstance(found, str):
        return failed(
            check,
            f"tls/ca.crt {found}",
            f"{PUT_BACK}: sites trust no other, a new one needs new kits",
        )
    if not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        return failed(check, "tls/ca.crt is not that of a CA", PUT_BACK)
    days = _days_left(found)
    if days < 0:
        return failed(
            check,
            f"it ended {-days} days ago: no site connects",
            "make a new home (`aggregator init`) and hand out new kits",
        )
    if not (home.tls / "ca.key").exists():
        return warning(check, "tls/ca.key is missing: the certificate cannot be renewed", PUT_BACK)
    if not _belongs(found, home.tls / "ca.key"):
        return failed(check, "tls/ca.key is not the key of tls/ca.crt", PUT_BACK)
    if days < CA_WARN_DAYS:
        return warning(
            check,
            f"it ends in {days} days, and every site needs a new kit then",
            "plan a new home and new kits with the sites",
        )
    return good(check, f"good for {days} days")


def server(home: AggregatorHome) -> Finding:
    """Whether the SuperLink's certificate holds for its names, and goes on doing so."""
    check = "certificate"
    ca, found = _certificate(home.tls / "ca.crt"), _certificate(home.tls / "server.crt")
    renew = "start `aggregator up` again: it makes a new one"
    if isinstance(ca, str):
        return unjudged(check, "there is no CA to hold it against", "see CA")
    if isinstance(found, str):
        return failed(check, f"tls/server.crt {found}", renew)
    try:
        found.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return failed(
            check, "tls/server.crt was not issued by tls/ca.crt", f"remove it and {renew}"
        )
    if not _belongs(found, home.tls / "server.key"):
        return failed(check, "tls/server.key is not its key", f"remove both and {renew}")
    missing = sorted({*LOOPBACK, home.settings.public_name} - set(_names(found)))
    if missing:
        return failed(check, f"it is not for {', '.join(missing)}", renew)
    days = _days_left(found)
    if days < 0:
        return failed(check, f"it ended {-days} days ago: no site connects", renew)
    if days < WARN_DAYS:
        fix = renew if days < RENEW_DAYS else f"in {days - RENEW_DAYS + 1} days {renew}"
        return warning(check, f"it ends in {days} days", fix)
    if is_up(home):
        served = _served(home)
        if served is not None and served.fingerprint(served.signature_hash_algorithm) != (  # type: ignore[arg-type]
            found.fingerprint(served.signature_hash_algorithm)  # type: ignore[arg-type]
        ):
            return warning(
                check,
                f"another is in use, good for {_days_left(served)} days",
                "start `aggregator up` again, and the edge proxy",
            )
    return good(check, f"issued by the CA for {', '.join(_names(found))}; good for {days} days")


def keys(home: AggregatorHome) -> Finding:
    """Whether releases and heads can be signed, by the keys that researchers are told of."""
    check, held = "keys", PublisherKeys(home.release_key.parent)
    try:
        newest = held.newest()
        for use, listed in (("head", newest.head), ("release", newest.release)):
            public = read_public_key(held.private(use).with_suffix(".pub"))  # type: ignore[arg-type]
            if encode_key(public) != encode_key(listed):
                return failed(
                    check, f"keys/{use}.pub is not the {use} key that keys.json names", PUT_BACK
                )
            private = held.private(use)  # type: ignore[arg-type]
            if not private.exists():
                continue
            if encode_key(read_private_key(private).public_key()) != encode_key(listed):
                return failed(
                    check, f"keys/{use}.key is not the {use} key that keys.json names", PUT_BACK
                )
        signing = [one for one in coordinators(home) if not one.revoked]
    except PublisherKeyError as error:
        return failed(check, str(error), PUT_BACK)
    except (LocalError, OSError) as error:
        return failed(check, str(error), PUT_BACK)
    if not held.private("head").exists():
        return failed(
            check,
            "keys/head.key is missing: researchers refuse what is published in "
            f"{home.settings.head_days} days at most",
            PUT_BACK,
        )
    if not signing:
        return warning(
            check, "nobody signs contracts here", "`aggregator coordinator add NAME`, then new kits"
        )
    told = f"key list {newest.sequence}, release key {key_id(newest.release)[:16]}"
    if not held.private("release").exists():
        return good(check, f"{told}, kept elsewhere: nothing can be published meanwhile")
    return good(check, f"{told}; {len(signing)} sign contracts")


def private(home: AggregatorHome) -> Finding:
    """Whether nobody else on this machine can read what signs."""
    check, found = "key files", list(_private_files(home))
    for path in found:
        status = path.stat()
        name = path.relative_to(home.root)
        if stat.S_IMODE(status.st_mode) & 0o077:
            return failed(
                check,
                f"{name} can be read by others (mode {stat.S_IMODE(status.st_mode):04o})",
                f"chmod 600 {name}; who may have read it? then `aggregator key rotate`",
            )
        if status.st_uid != os.geteuid() and os.geteuid() != 0:
            return failed(check, f"{name} is another user's", "run as the user whose the home is")
    return good(check, f"{len(found)} private keys, readable by their owner alone")


def _private_files(home: AggregatorHome) -> Iterator[Path]:
    for folder in (home.tls, home.release_key.parent, home.coordinators):
        yield from sorted(folder.glob("*.key"))


def expiry(path: Path) -> float | None:
    """When the certificate in the file ends, seconds since 1970; None where there is none."""
    found = _certificate(path)
    return None if isinstance(found, str) else found.not_valid_after_utc.timestamp()


def _certificate(path: Path) -> x509.Certificate | str:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ValueError:
        return "is damaged"


def _served(home: AggregatorHome) -> x509.Certificate | None:
    try:
        text = ssl.get_server_certificate(("127.0.0.1", home.settings.superlink_port), timeout=5)
        return x509.load_pem_x509_certificate(text.encode())
    except (OSError, ValueError):
        return None


def _belongs(certificate: x509.Certificate, key_file: Path) -> bool:
    try:
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return key.public_key().public_bytes(*form) == certificate.public_key().public_bytes(*form)


def _names(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    names = found.get_values_for_type(x509.DNSName)
    addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = [
        one
        for one in found.get_values_for_type(x509.IPAddress)
        if isinstance(one, ipaddress.IPv4Address | ipaddress.IPv6Address)
    ]
    return [*names, *map(str, addresses)]


def _days_left(certificate: x509.Certificate) -> int:
    return (certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)).days
