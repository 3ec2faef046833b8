"""The aggregator's home: one folder with settings, certificates, keys, sites, runs and releases."""

import json
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from aggregator.certificates import ensure_certificates
from aggregator.publisher_keys import PublisherKeys
from shared.durable import write_durably
from shared.frozen import Frozen, explain
from shared.release.keys import write_key_pair

HOME_VARIABLE = "FEDSTILL_HOME"
SETTINGS_FILE = "aggregator.toml"
FIRST_COORDINATOR = "first"
"""Whose key a new home has, so that contracts can be signed from the start."""


class HomeError(ValueError):
    """A home that is missing or whose settings are not valid; names the field and the fix."""


class AggregatorSettings(Frozen):
    """``aggregator.toml``: the names and ports the aggregator is reached under."""

    public_name: str = Field(
        "localhost",
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$",
        description="name or IPv4 address under which the sites reach the aggregator",
    )
    superlink_port: int = Field(
        9443, ge=1, le=65535, description="loopback port of the SuperLink (TLS); never public"
    )
    public_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="port the sites reach: that of the edge proxy; 0: superlink_port itself",
    )
    api_host: str = Field("127.0.0.1", description="address the release API listens on")
    api_port: int = Field(8080, ge=1, le=65535, description="port of the release API")
    require_utility: bool = Field(
        False, description="publish no run whose utility has not been measured"
    )
    two_principals: bool = Field(
        False, description="who publishes a release shows a token, and is not who built it"
    )
    head_days: int = Field(
        14, ge=1, le=365, description="days after which researchers refuse an old signed head"
    )
    database: str = Field(
        "",
        pattern=r"^(postgresql(\+psycopg)?://\S+)?$",
        description="catalog's database, postgresql://user@host/name; empty: SQLite in the home",
    )
    storage: str = Field(
        "",
        pattern=r"^(/\S.*|[a-z][a-z0-9]*://\S+)?$",
        description="where releases' files lie, s3://bucket/prefix or a folder; empty: in the home",
    )

    api_requests_a_minute: int = Field(
        6000, ge=0, description="requests a minute of one token, or one address; 0: not counted"
    )
    edge: bool = Field(
        False, description="`up` starts the edge proxy too: nginx, which must be installed"
    )
    edge_port: int = Field(8443, ge=1, le=65535, description="port of that edge proxy, public")
    metrics_port: int = Field(
        0, ge=0, le=65535, description="loopback port of Prometheus metrics; 0: none"
    )
    behind_proxy: bool = Field(
        False, description="a proxy of yours sets X-Forwarded-For and -Proto: believe its last word"
    )
    accel_prefix: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9/_-]*)?$",
        description="nginx location, internal, of the blobs' folder, which then sends the files",
    )
    edge_log: str = Field(
        "",
        pattern=r"^(/\S.*)?$",
        description="folder where the edge proxy logs what it answers by itself; empty: it may not",
    )

    desk: bool = Field(
        True, description="serve the coordinators' desk, /desk, to who has a token of launch:run"
    )

    @property
    def public_address(self) -> str:
        """``host:port`` the sites connect to."""
        own = self.edge_port if self.edge else self.superlink_port
        return f"{self.public_name}:{self.public_port or own}"

    @model_validator(mode="after")
    def _believe_the_edge(self) -> Self:
        if self.edge and not self.behind_proxy:
            raise ValueError("edge needs behind_proxy = true: all requests come from the edge then")
        return self


@dataclass(frozen=True)
class AggregatorHome:
    """Where things lie below ``root``."""

    root: Path

    @property
    def settings_file(self) -> Path:
        """``aggregator.toml``."""
        return self.root / SETTINGS_FILE

    @property
    def tls(self) -> Path:
        """The CA and the SuperLink's certificate."""
        return self.root / "tls"

    @property
    def release_key(self) -> Path:
        """The Ed25519 key that signs releases (PEM, mode 0600)."""
        return self.root / "keys" / "release.key"

    @property
    def coordinators(self) -> Path:
        """The keys contracts are signed with."""
        return self.root / "coordinators"

    @property
    def flower(self) -> Path:
        """Flower's own folder: ``FLWR_HOME`` and the SuperLink's database."""
        return self.root / "flower"

    @property
    def database(self) -> Path:
        """The SuperLink's SQLite database."""
        return self.flower / "superlink.db"

    @property
    def executor_secret(self) -> Path:
        """Whoever can read it may take the SuperLink's tasks; new at each of its starts."""
        return self.flower / "executor.secret"

    @property
    def sites(self) -> Path:
        """One JSON file per enrolled site."""
        return self.root / "sites"

    @property
    def revoked(self) -> Path:
        """One JSON file per site whose keys are refused."""
        return self.root / "revoked"

    @property
    def kits(self) -> Path:
        """What is handed to each site: ``NAME.kit.json``."""
        return self.root / "kits"

    @property
    def runs(self) -> Path:
        """One folder per run, named by the first 16 hex digits of its contract's digest."""
        return self.root / "runs"

    @property
    def foundations(self) -> Path:
        """What contracts with public directions stand on: computed before they are agreed on."""
        return self.root / "foundations"

    @property
    def logs(self) -> Path:
        """What the SuperLink and the API write."""
        return self.root / "logs"

    @cached_property
    def settings(self) -> AggregatorSettings:
        """The settings; raises ``HomeError``."""
        return read_settings(self.settings_file)

    @property
    def superlink_address(self) -> str:
        """``host:port`` of the SuperLink, as seen from this machine."""
        return f"127.0.0.1:{self.settings.superlink_port}"

    @property
    def api_url(self) -> str:
        """Where this machine reaches the release API."""
        host = self.settings.api_host
        return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{self.settings.api_port}"

    @property
    def catalog(self) -> Path | str:
        """The catalog: a SQLite file, or the URL of a database; may raise ``HomeError``."""
        return self.publishing.database or self.root / "catalog.sqlite"

    @property
    def blobs(self) -> Path | str:
        """The releases' files: a folder, or the URL of a bucket; may raise ``HomeError``."""
        return self.publishing.storage or self.root / "blobs"

    @property
    def publishing(self) -> AggregatorSettings:
        """The settings, or the defaults: releases are served from a home that has nothing else."""
        return self.settings if self.settings_file.exists() else AggregatorSettings()

    def run_folder(self, digest: str) -> Path:
        """The folder of the run of a contract digest."""
        return self.runs / digest[:16]


def read_settings(path: Path) -> AggregatorSettings:
    """Reads ``aggregator.toml``; raises ``HomeError`` naming the field and the fix."""
    try:
        return AggregatorSettings.model_validate(tomllib.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        raise HomeError(
            f"{path} does not exist: run `aggregator init --home {path.parent}` first"
        ) from None
    except OSError as error:
        raise HomeError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HomeError(f"{path}: is not valid TOML: {error}") from None
    except ValidationError as error:
        raise HomeError(f"{path}: {explain(error)}") from None


def create_home(root: Path, changes: dict[str, str | int]) -> AggregatorHome:
    """Creates what is missing below ``root``; ``changes`` are settings to set. Safe to repeat.

    Keys and certificates that exist are kept; the server certificate is renewed where it runs out
    or the public name changed. Raises ``HomeError``.
    """
    home = AggregatorHome(root.resolve())
    present: dict[str, str | int] = {}
    if home.settings_file.exists():
        present = read_settings(home.settings_file).model_dump()
    try:
        settings = AggregatorSettings.model_validate({**present, **changes})
    except ValidationError as error:
        raise HomeError(explain(error)) from None
    try:
        for folder in (home.root, home.tls, home.release_key.parent, home.flower, home.sites):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (home.runs, home.logs):
            folder.mkdir(exist_ok=True, mode=0o700)
        if settings.model_dump() != present:
            write_durably(home.settings_file, settings_text(settings).encode())
        ensure_certificates(home.tls, names=[settings.public_name])
        keys = PublisherKeys(home.release_key.parent)
        # Where there are lists already, the release key is kept elsewhere: no new one is made.
        if not home.release_key.exists() and not keys.chain_file.exists():
            write_key_pair(home.release_key, home.release_key.with_suffix(".pub"))
        home.coordinators.mkdir(exist_ok=True, mode=0o700)
        made = {path.suffix for path in home.coordinators.iterdir()}
        if not made & {".key", ".pub", ".revoked"}:  # a public half alone: its key is elsewhere
            first = home.coordinators / f"{FIRST_COORDINATOR}.key"
            write_key_pair(first, first.with_suffix(".pub"))
        keys.ensure()
    except OSError as error:
        raise HomeError(f"{error.filename}: {error.strerror}") from None
    return home


def settings_text(settings: AggregatorSettings) -> str:
    """``aggregator.toml`` with every setting and what it means."""
    lines = ["# Settings of the fedstill aggregator."]
    for name, field in AggregatorSettings.model_fields.items():
        value = getattr(settings, name)
        lines.append(f"\n# {field.description}")
        # A boolean, a number or a plain string is the same in TOML as in JSON.
        lines.append(f"{name} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"
