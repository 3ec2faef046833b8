"""The aggregator's own certification authority and the SuperLink's server certificate.

Sites trust this CA alone (``ca.crt``, handed to them once), not the system's store.
"""

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.durable import write_durably

CA_DAYS = 3650
SERVER_DAYS = 397
RENEW_DAYS = 30
"""A server certificate with fewer days left is renewed at the next ``init`` or ``up``."""
LOOPBACK = ("localhost", "127.0.0.1")


def ensure_certificates(folder: Path, *, names: Sequence[str]) -> None:
    """Creates ``ca.crt``, ``ca.key``, ``server.crt`` and ``server.key`` where they are missing.

    The server certificate speaks for ``names``, localhost and 127.0.0.1, and is renewed where it
    does not, or has less than ``RENEW_DAYS`` days left. The CA is never replaced: sites trust it.
    """
    if not (folder / "ca.crt").exists():
        _write_pair(folder / "ca", *_certification_authority())
    wanted = _alternative_names([*LOOPBACK, *names])
    if not _serves(folder / "server.crt", wanted):
        authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        _write_pair(folder / "server", *_server(wanted, authority=authority, authority_key=key))


def _serves(path: Path, wanted: x509.SubjectAlternativeName) -> bool:
    if not path.exists() or not path.with_suffix(".key").exists():
        return False
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    present = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return left.days >= RENEW_DAYS and set(present) == set(wanted)


def _alternative_names(names: Sequence[str]) -> x509.SubjectAlternativeName:
    entries: list[x509.GeneralName] = []
    for name in dict.fromkeys(names):
        try:
            entries.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            entries.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(entries)


def _certification_authority() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedstill aggregator CA")])
    certificate = (
        _builder(subject=name, issuer=name, public_key=key.public_key(), days=CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(sign_certificates=True), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
        .sign(key, hashes.SHA384())
    )
    return certificate, key


def _server(
    names: x509.SubjectAlternativeName,
    *,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedstill aggregator")])
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = (
        _builder(
            subject=subject,
            issuer=authority.subject,
            public_key=key.public_key(),
            days=SERVER_DAYS,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(names, critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    return certificate, key


def _builder(
    *, subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _write_pair(stem: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    """Key first: a certificate that is there always has its key."""
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_durably(stem.with_suffix(".key"), private, mode=0o600)
    write_durably(
        stem.with_suffix(".crt"), certificate.public_bytes(serialization.Encoding.PEM), mode=0o644
    )
