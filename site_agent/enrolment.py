"""What a new site makes once: its settings, its key, and what it hands to the aggregator."""

import json
import secrets
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)
from pydantic import ValidationError

from shared.durable import write_durably
from shared.release.errors import LocalError
from shared.release.keys import read_private_key
from site_agent.kit import ENROLMENT_FILE
from site_agent.policy_file import POLICY_FILE, default_policy_text
from site_agent.settings import (
    SETTINGS_FILE,
    SettingsError,
    SiteSettings,
    explain_settings,
    read_settings,
)

_TEMPLATE = """\
# The settings of a fedstill site; what it allows is in policy.toml. Lines that begin with # show
# the default.

# The site's name in the study: lower-case letters, digits and hyphens.
name = {name}

# Where the aggregator listens, HOST:PORT. The only address this site ever connects to.
aggregator = {aggregator}

# The folder with the hospital's images (DICOM or NIfTI), read by `site-agent index` alone.
images = {images}

# What the site offers: "CT" or "MR"; of MR, where you like, the series alone of whose name a word
# begins so (of a NIfTI file the file's name, of DICOM ProtocolName or SeriesDescription).
# modality = "CT"
# sequence = "FLAIR"

# Slices kept of one patient, evenly spaced.
# slices_per_patient = 32

# Port on loopback for the hospital's monitoring: metrics and health; 0: none.
# metrics_port = 0

# Where the images come over the imaging network: set images = "spool" above, and one or both of
# the sources. `site-agent import listen` takes what is pushed, `site-agent import pull` fetches.
# [importer]
# spool = "spool"
# quota_gb = 100.0
#
# An archive or a scanner pushes, by C-STORE: the AE titles that may send, and this machine's
# address on the imaging network. With a certificate senders need TLS.
# [importer.listen]
# callers = ["PACS"]
# ae_title = "FEDSTILL"
# address = "127.0.0.1"
# port = 11112
# certificate_file = "keys/dicom.crt"
# key_file = "keys/dicom.key"
# ca_file = "keys/hospital-ca.crt"
#
# Or the site fetches, by DICOMweb.
# [importer.dicomweb]
# url = "https://pacs.example/dicom-web"
# token_file = "keys/pacs.token"
# study_filters = {{ StudyDescription = "*thorax*" }}
"""


def enrol(*, home: Path, name: str, aggregator: str, images: Path) -> SiteSettings:
    """Writes ``site.toml``, ``policy.toml``, the site's keys and ``enrolment.json`` into ``home``.

    Keys and a policy that are there already are kept, so that a run that was cut short can be
    repeated. Raises ``SettingsError`` where the home has settings already or a value is not valid.
    """
    home = home.absolute()
    if (home / SETTINGS_FILE).exists():
        raise SettingsError(
            f"{home / SETTINGS_FILE}: is there already; edit it, or choose another --home"
        )
    try:
        settings = SiteSettings(
            home=home, name=name, aggregator=aggregator, images=images.absolute()
        )
    except ValidationError as error:
        raise SettingsError(explain_settings(error)) from None
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    public_key = _flower_key(settings)
    pseudonym_key(settings)
    enrolment = {"version": 1, "name": name, "flower_public_key": public_key}
    write_durably(
        home / ENROLMENT_FILE, json.dumps(enrolment, indent=2).encode() + b"\n", mode=0o644
    )
    complete_enrolment(settings)
    if not (home / POLICY_FILE).exists():
        # Readable by whoever runs the worker; a hospital may make it root's.
        write_durably(home / POLICY_FILE, default_policy_text().encode(), mode=0o644)
    # Last: a home with settings is complete.
    write_durably(home / SETTINGS_FILE, _settings_text(settings).encode())
    return read_settings(home)


def complete_enrolment(settings: SiteSettings) -> None:
    """Puts the site's signing key into an ``enrolment.json`` that does not hold it.

    So does a home of a version without secure sums get one. Raises ``SettingsError`` where the file
    has been damaged.
    """
    path = settings.home / ENROLMENT_FILE
    if not path.exists():
        return
    try:
        document = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        raise SettingsError(f"{path}: is damaged; remove it") from None
    public_key = signing_key(settings).public_key().public_bytes_raw().hex()
    if document.get("signing_public_key") != public_key:
        document["signing_public_key"] = public_key
        write_durably(path, json.dumps(document, indent=2).encode() + b"\n", mode=0o644)


def signing_key(settings: SiteSettings) -> Ed25519PrivateKey:
    """The key that signs offers of a secure sum; made at first use, mode 0600.

    Raises ``SettingsError`` where the file has been damaged.
    """
    path = settings.signing_key_path
    if not path.exists():
        fresh = Ed25519PrivateKey.generate()
        write_durably(path, fresh.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    try:
        return read_private_key(path)
    except LocalError as error:
        raise SettingsError(
            f"{error}; remove it, start the worker, and hand over enrolment.json again"
        ) from None


def pseudonym_key(settings: SiteSettings) -> bytes:
    """The 32 bytes under which patients become pseudonyms; made at first use, mode 0600.

    Raises ``SettingsError`` where the file has been damaged.
    """
    path = settings.pseudonym_key_path
    if not path.exists():
        write_durably(path, secrets.token_bytes(32))
    key = path.read_bytes()
    if len(key) != 32:
        raise SettingsError(f"{path}: does not hold 32 bytes; remove it and index again")
    return key


def _flower_key(settings: SiteSettings) -> str:
    """Makes the site's ECDSA P-384 key unless it is there; gives the public OpenSSH line."""
    path = settings.key_path
    if not path.exists():
        fresh = ec.generate_private_key(ec.SECP384R1())
        write_durably(
            path, fresh.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        )
    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except ValueError:
        raise SettingsError(f"{path}: is not an OpenSSH key; remove it and try again") from None
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    write_durably(path.with_suffix(".pub"), f"{line} {settings.name}\n".encode(), mode=0o644)
    return line


def _settings_text(settings: SiteSettings) -> str:
    return _TEMPLATE.format(
        # A JSON string is a TOML string.
        name=json.dumps(settings.name),
        aggregator=json.dumps(settings.aggregator),
        images=json.dumps(str(settings.images), ensure_ascii=False),
    )
