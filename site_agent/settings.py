"""The site's settings: ``site.toml`` in the site's home, and the policy beside it."""

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from shared.enrolment import Address
from shared.frozen import Frozen, Slug
from shared.tasks.settings import Modality
from site_agent.importer.settings import TABLES, ImporterSettings
from site_agent.policy import Policy
from site_agent.policy_file import POLICY_FILE, PolicyError, read_policy

SETTINGS_FILE = "site.toml"

Sequence = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _*-]{0,31}$")]
"""The begin of a word in the names of MR series, such as FLAIR or T1."""


class SettingsError(ValueError):
    """Settings that cannot be read or are not valid; the text names the field and the fix."""


class SiteSettings(Frozen):
    """What a site is called, whom it talks to, where its images are and what it allows."""

    home: Path = Field(description="the site's home folder, absolute")
    name: Slug
    aggregator: Address = Field(description="host:port the site connects to")
    images: Path = Field(description="folder of DICOM or NIfTI files, absolute")
    modality: Modality = Field("CT", description="what is offered: CT or MR")
    sequence: Sequence | None = Field(
        None, description="of MR, take the series alone of whose name a word begins so"
    )
    slices_per_patient: int = Field(
        32, ge=1, le=512, description="slices kept of one patient, evenly spaced"
    )
    socket: Path = Field(
        Path("worker.sock"), description="the worker's Unix socket; from the site's home"
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="port on loopback for metrics and health; 0: none"
    )
    policy: Policy = Policy()
    importer: ImporterSettings = ImporterSettings()

    @model_validator(mode="after")
    def _sequence_of_mr(self) -> "SiteSettings":
        if self.sequence is not None and self.modality != "MR":
            raise ValueError('is for MR: set modality = "MR", or remove it')
        return self

    @property
    def key_path(self) -> Path:
        """The site's private key for Flower: OpenSSH, ECDSA P-384."""
        return self.home / "keys" / "flower"

    @property
    def signing_key_path(self) -> Path:
        """The site's private key for secure sums: Ed25519, PKCS#8 PEM."""
        return self.home / "keys" / "signing"

    @property
    def pseudonym_key_path(self) -> Path:
        """The key of the patients' pseudonyms; it never leaves the site."""
        return self.home / "keys" / "pseudonym.key"

    @property
    def ca_path(self) -> Path:
        """The certificate that vouches for the aggregator."""
        return self.home / "aggregator-ca.crt"

    @property
    def cohort_path(self) -> Path:
        """The indexed slices."""
        return self.home / "cohort"

    @property
    def spool_path(self) -> Path:
        """Where the importer puts what comes from the imaging network."""
        return self.home / self.importer.spool.expanduser()

    @property
    def outbox_path(self) -> Path:
        """Everything that ever left."""
        return self.home / "outbox"

    @property
    def audit_path(self) -> Path:
        """What the site did, in a chain of hashes."""
        return self.home / "audit"

    @property
    def ledger_path(self) -> Path:
        """What releases with noise have cost."""
        return self.home / "ledger"

    @property
    def socket_path(self) -> Path:
        """The worker's Unix socket."""
        return self.home / self.socket.expanduser()

    @property
    def figures_path(self) -> Path:
        """The worker's other Unix socket, for its figures (``figures.py``)."""
        return self.socket_path.with_name("figures.sock")

    @property
    def contact_path(self) -> Path:
        """Changed last when the aggregator last answered."""
        return self.home / "flower" / "contact"

    @property
    def is_apart(self) -> bool:
        """Whether worker and connector are two users with a home each (``apart.py``)."""
        return self.socket_path.parent != self.home

    @property
    def logs_path(self) -> Path:
        """Logs that stay at the site."""
        return self.home / "logs"


def read_settings(home: Path, *, policy: bool = True) -> SiteSettings:
    """Reads ``home/site.toml`` and ``policy.toml``; a relative ``images`` is taken from ``home``.

    The policy is the worker's: where the connector has a home of its own, it is read without.

    Raises ``SettingsError`` naming the field (or the line) and the fix.
    """
    home = home.absolute()
    path = home / SETTINGS_FILE
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"{path}: not found; `site-agent init --home {home}` writes one"
        ) from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is not valid TOML: {error}") from None
    if "home" in document:
        raise SettingsError(f"{path}: home: is the file's own folder; remove the line")
    if "policy" in document:
        raise SettingsError(
            f"{path}: [policy]: lives in {home / POLICY_FILE} now: move the table's lines there, "
            "without the line [policy], and remove it here"
        )
    images = document.get("images")
    if isinstance(images, str) and images:
        document["images"] = home / Path(images).expanduser()
    try:
        settings = SiteSettings.model_validate({**document, "home": home})
        if not policy and settings.is_apart:
            return settings
        return settings.model_copy(update={"policy": read_policy(home)})
    except PolicyError as error:
        raise SettingsError(str(error)) from None
    except ValidationError as error:
        raise SettingsError(f"{path}: {explain_settings(error)}") from None


def explain_settings(error: ValidationError) -> str:
    """One part a field: its dotted name and the fix."""
    parts = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        field = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            model = TABLES.get(field.rpartition(".")[0], SiteSettings)
            known = ", ".join(name for name in model.model_fields if name not in ("home", "policy"))
            parts.append(f"{field}: unknown setting, remove it; known: {known}")
        elif item["type"] == "missing":
            parts.append(f"{field}: missing, add it")
        elif field == "sequence":
            parts.append("sequence: write the begin of a word of the series' name, such as FLAIR")
        elif field == "":
            parts.append(f"sequence: {item['msg'].removeprefix('Value error, ')}")
        elif field == "name":
            parts.append("name: use lower-case letters, digits and hyphens, at most 63")
        elif field == "aggregator":
            parts.append("aggregator: write HOST:PORT, for example aggregator.example.org:443")
        else:
            parts.append(f"{field}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(parts)
