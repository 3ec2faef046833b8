"""The importer's settings: the table ``[importer]`` of ``site.toml``."""

import re
from datetime import date
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from shared.frozen import Frozen

_AE_TITLE = re.compile(r"[!-\[\]-~](?:[ -\[\]-~]{0,14}[!-\[\]-~])?")


Table = TypeVar("Table", bound=Frozen)


def _ae_title(value: str) -> str:
    if not _AE_TITLE.fullmatch(value):
        raise ValueError("write an AE title: 1 to 16 printable characters without backslash")
    return value


AETitle = Annotated[str, AfterValidator(_ae_title)]
"""Part 5 of the standard, 6.2."""

Filters = Annotated[
    dict[
        Annotated[str, Field(pattern=r"^[A-Z][A-Za-z]{1,63}$")],
        Annotated[str, Field(min_length=1, max_length=256)],
    ],
    Field(max_length=16),
]
"""Attributes by their keyword, such as StudyDescription, and what they must match; * and ? match
any characters and one."""


class ListenSettings(Frozen):
    """A C-STORE listener, into which an archive or a scanner pushes."""

    ae_title: AETitle = Field("FEDSTILL", description="what senders call; others are refused")
    callers: tuple[AETitle, ...] = Field(
        min_length=1, max_length=64, description="AE titles that may send"
    )
    address: str = Field("127.0.0.1", description="IP address to listen at")
    port: int = Field(11112, ge=1, le=65535)
    max_associations: int = Field(4, ge=1, le=64, description="senders at a time")
    max_pdu_bytes: int = Field(65536, ge=4096, le=1048576, description="longest unit of transfer")
    timeout_s: float = Field(60.0, ge=1, le=3600, description="silence after which one is cut off")
    certificate_file: Path | None = Field(
        None, description="PEM file of this machine's certificate: senders then need TLS"
    )
    key_file: Path | None = Field(None, description="PEM file of its private key, mode 0600")
    ca_file: Path | None = Field(
        None, description="PEM file of the authority that senders' certificates must come from"
    )

    @field_validator("address")
    @classmethod
    def _is_address(cls, value: str) -> str:
        try:
            return str(ip_address(value))
        except ValueError:
            raise ValueError("write an IP address of this machine, such as 10.1.2.3") from None

    @model_validator(mode="after")
    def _has_a_pair(self) -> "ListenSettings":
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file, key_file: set both, or neither")
        if self.ca_file is not None and self.certificate_file is None:
            raise ValueError("ca_file: is for TLS: set certificate_file and key_file too")
        return self

    def beside(self, home: Path) -> "ListenSettings":
        """The same with relative files taken from the site's ``home``."""
        return _files_beside(self, home, "certificate_file", "key_file", "ca_file")


class DicomwebSettings(Frozen):
    """What is fetched from an archive's DICOMweb service, and how it is reached."""

    url: str = Field(max_length=512, description="root of QIDO-RS and WADO-RS")
    token_file: Path | None = Field(None, description="file that holds a bearer token")
    login_file: Path | None = Field(None, description="file that holds user:password")
    ca_file: Path | None = Field(None, description="PEM file of a private certificate authority")
    plain_http: bool = Field(False, description="allow http:// to other machines")
    studied_from: date | None = Field(None, description="first StudyDate")
    studied_to: date | None = Field(None, description="last StudyDate")
    study_filters: Filters = Field({}, description="attributes of studies")
    series_filters: Filters = Field({}, description="attributes of series")
    max_studies: int = Field(10_000, ge=1, le=1_000_000, description="a query with more is refused")
    timeout_s: float = Field(60.0, ge=1, le=3600, description="longest wait for the service")

    @field_validator("url")
    @classmethod
    def _is_root(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError(
                "write the root of the service, such as https://pacs.example/dicom-web"
            )
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("no user, password, ? or #; a login goes into login_file")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _is_reached_safely(self) -> "DicomwebSettings":
        parts = urlsplit(self.url)
        if parts.scheme == "http" and not self.plain_http and not _is_loopback(parts.hostname):
            raise ValueError(
                "url: http:// sends images in the clear; use https://, or set plain_http = true "
                "where the network is protected otherwise"
            )
        if self.token_file and self.login_file:
            raise ValueError("token_file, login_file: set one of them")
        if self.studied_from and self.studied_to and self.studied_from > self.studied_to:
            raise ValueError("studied_from: is after studied_to")
        return self

    def beside(self, home: Path) -> "DicomwebSettings":
        """The same with relative files taken from the site's ``home``."""
        return _files_beside(self, home, "token_file", "login_file", "ca_file")


class ImporterSettings(Frozen):
    """Where images from the imaging network are put, and where they come from."""

    spool: Path = Field(Path("spool"), description="folder that is filled; from the site's home")
    quota_gb: float = Field(100.0, gt=0, le=1_000_000, description="of 10^9 bytes, in the spool")
    max_object_mb: float = Field(256.0, gt=0, le=4096, description="of 10^6 bytes, one object")
    group_reads: bool = Field(
        False, description="the spool is open to its group: the worker is another user"
    )
    listen: ListenSettings | None = None
    dicomweb: DicomwebSettings | None = None

    @property
    def quota_bytes(self) -> int:
        """Bytes that the spool may hold."""
        return int(self.quota_gb * 1e9)

    @property
    def max_object_bytes(self) -> int:
        """Bytes that one object may have."""
        return int(self.max_object_mb * 1e6)


TABLES: dict[str, type[Frozen]] = {
    "importer": ImporterSettings,
    "importer.listen": ListenSettings,
    "importer.dicomweb": DicomwebSettings,
}
"""The tables of ``site.toml`` that are the importer's."""


def _files_beside(table: Table, home: Path, *names: str) -> Table:
    files = {name: getattr(table, name) for name in names}
    return table.model_copy(
        update={name: home / file.expanduser() for name, file in files.items() if file}
    )


def _is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host or "").is_loopback
    except ValueError:
        return False
