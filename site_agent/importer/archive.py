"""An archive's DICOMweb service: what it lists (QIDO-RS) and what it hands out (WADO-RS).

Part 18 of the standard, 10.4 and 10.6. Listing is dicomweb-client's; objects are not, since that
decodes each one, and here bytes are kept as they came. Every answer is bounded, redirects are
refused, and errors name a setting, never a study.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from dicomweb_client.web import DICOMwebClient
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase, HTTPBasicAuth
from urllib3.util import Retry

from site_agent.importer.multipart import MultipartError, boundary_of, parts
from site_agent.importer.objects import STORAGE_CLASSES
from site_agent.importer.settings import DicomwebSettings

MAX_LIST_BYTES = 64 * 2**20
_PAGE = 500
_CHUNK_BYTES = 2**18
_RETRIES = 3
_UID = re.compile(r"[0-9][0-9.]{0,63}")
_STUDY, _SERIES, _INSTANCE, _CLASS = "0020000D", "0020000E", "00080018", "00080016"

Json = dict[str, Any]


class ArchiveError(ValueError):
    """An archive that cannot be used as set; the text names the setting and the fix."""


class TransferError(Exception):
    """A series that did not come whole this time; says nothing of it."""


@dataclass(frozen=True)
class Series:
    """A series and those of its objects that may be imported."""

    study: str
    uid: str
    instances: tuple[str, ...]


class Archive:
    """An archive, asked for series of one modality; a context manager that ends its connections."""

    def __init__(self, settings: DicomwebSettings, *, modality: str) -> None:
        """Reads credentials and prepares the connection. Raises ``ArchiveError``."""
        self._settings = settings
        self._modality = modality
        self._session = _session(settings)
        self._client = DICOMwebClient(
            settings.url,
            session=self._session,
            timeout=settings.timeout_s,
            permissive_uid=True,  # scanners write some with leading zeros; see _UID
        )
        # The session's adapter tries again, listing and fetching alike.
        self._client.set_http_retry_params(retry=False)

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def studies(self) -> list[str]:
        """The studies that match the settings. Raises ``ArchiveError``."""
        settings = self._settings
        filters = {"ModalitiesInStudy": self._modality, **settings.study_filters}
        if settings.studied_from or settings.studied_to:
            begin, end = (
                f"{day:%Y%m%d}" if day else ""
                for day in (settings.studied_from, settings.studied_to)
            )
            filters["StudyDate"] = f"{begin}-{end}"

        def page(offset: int) -> list[Json]:
            return self._client.search_for_studies(
                search_filters=filters, limit=_PAGE, offset=offset
            )

        found: list[str] = []
        for uid, _ in self._listed(page, _STUDY):
            if len(found) == settings.max_studies:
                raise ArchiveError(
                    f"importer.dicomweb: more than {settings.max_studies} studies match; narrow "
                    "studied_from, studied_to or study_filters, or raise max_studies"
                )
            found.append(uid)
        return found

    def series(self, study: str) -> Iterator[Series]:
        """A study's series that match, with their CT and MR objects. Raises ``ArchiveError``."""
        filters = {"Modality": self._modality, **self._settings.series_filters}

        def series_page(offset: int) -> list[Json]:
            return self._client.search_for_series(
                study, search_filters=filters, limit=_PAGE, offset=offset
            )

        for uid, _ in self._listed(series_page, _SERIES):

            def page(offset: int, series: str = uid) -> list[Json]:
                return self._client.search_for_instances(study, series, limit=_PAGE, offset=offset)

            instances = tuple(
                instance
                for instance, item in self._listed(page, _INSTANCE)
                # Not every service says the class; what comes is looked at again.
                if _value(item, _CLASS) in ("", *STORAGE_CLASSES)
            )
            if instances:
                yield Series(study, uid, instances)

    def objects(self, series: Series, instance: str | None = None) -> Iterator[Iterator[bytes]]:
        """The objects of a series, or one of them, each as pieces of a DICOM file.

        Raises ``ArchiveError``, and ``TransferError`` where they fail to come or break off.
        """
        url = f"{self._settings.url}/studies/{series.study}/series/{series.uid}"
        if instance is not None:
            url += f"/instances/{instance}"
        # As stored: an archive may otherwise decompress, or fail to.
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        with self._told():
            response = self._session.get(
                url, headers={"Accept": accept}, stream=True, timeout=self._settings.timeout_s
            )
        with response:
            if response.status_code in (401, 403):
                raise _refusal(response.status_code)
            if not response.ok:
                raise TransferError
            chunks = response.iter_content(_CHUNK_BYTES)
            with _whole():
                boundary = boundary_of(response.headers.get("Content-Type", ""))
                for content in [chunks] if boundary is None else parts(chunks, boundary):
                    yield _pieces(content)

    def _listed(self, page: Callable[[int], list[Json]], tag: str) -> Iterator[tuple[str, Json]]:
        """The entries of all pages, each once; a service may give fewer a page than asked for."""
        seen: set[str] = set()
        offset = 0
        while True:
            with self._told():
                items = page(offset)
                if not isinstance(items, list):
                    raise ValueError
            fresh = 0
            for item in items:
                uid = _value(item, tag)
                # It becomes part of an address.
                if not _UID.fullmatch(uid) or uid in seen:
                    continue
                seen.add(uid)
                fresh += 1
                yield uid, item
            offset += len(items)
            # One that knows no offset gives the same page again.
            if not fresh:
                return

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turns what goes wrong into a setting and a fix: the libraries' texts name studies."""
        host = urlsplit(self._settings.url).netloc
        try:
            yield
        except requests.HTTPError as error:
            raise _refusal(
                error.response.status_code if error.response is not None else 0
            ) from None
        except requests.exceptions.SSLError:
            raise ArchiveError(
                f"importer.dicomweb.ca_file: the certificate of {host} is not trusted; set it to "
                "the PEM file of the authority that signed it"
            ) from None
        except requests.exceptions.ProxyError:
            raise ArchiveError(
                f"importer.dicomweb.url: the proxy does not reach {host}; add it to the variable "
                "NO_PROXY, or correct HTTPS_PROXY"
            ) from None
        except requests.TooManyRedirects:
            raise ArchiveError(
                f"importer.dicomweb.url: {host} sends elsewhere; set the address it should be"
            ) from None
        except (requests.ConnectionError, requests.Timeout):
            raise ArchiveError(
                f"importer.dicomweb.url: {host} does not answer within "
                f"{self._settings.timeout_s:g} s (timeout_s); check the address, that the service "
                "runs, and the firewall"
            ) from None
        except (ValueError, KeyError, requests.RequestException) as error:
            if isinstance(error, ArchiveError):
                raise
            raise ArchiveError(
                f"importer.dicomweb.url: what answers at {host} is not QIDO-RS, or answers more "
                "than it should; set the root under which /studies lies"
            ) from None


def _pieces(content: Iterator[bytes]) -> Iterator[bytes]:
    # Its reader's frame is not the one that asked for the objects.
    with _whole():
        yield from content


@contextmanager
def _whole() -> Iterator[None]:
    """An answer that breaks off is a ``TransferError``."""
    try:
        yield
    except (MultipartError, requests.RequestException):
        raise TransferError from None


class _Session(requests.Session):
    """One whose own ``verify`` holds, whatever REQUESTS_CA_BUNDLE says."""

    def merge_environment_settings(self, *arguments: Any, **options: Any) -> Any:
        merged = super().merge_environment_settings(*arguments, **options)
        if isinstance(self.verify, str):
            merged["verify"] = self.verify
        return merged


class _Credentials(AuthBase):
    """A bearer token, or nothing; either way no login is taken from a .netrc file."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token is not None:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Bounded:
    """A response's body that fails beyond a number of bytes."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def stream(self, *arguments: Any, **options: Any) -> Iterator[bytes]:
        left = MAX_LIST_BYTES
        for chunk in self._raw.stream(*arguments, **options):
            left -= len(chunk)
            if left < 0:
                self._raw.close()
                raise ValueError
            yield chunk


def _session(settings: DicomwebSettings) -> requests.Session:
    session = _Session()
    if settings.login_file is not None:
        user, colon, password = _secret(settings.login_file, "login_file").partition(":")
        if not colon:
            raise ArchiveError(
                f"importer.dicomweb.login_file: {settings.login_file}: write user:password"
            )
        session.auth = HTTPBasicAuth(user.encode(), password.encode())
    else:
        token = settings.token_file
        session.auth = _Credentials(None if token is None else _secret(token, "token_file"))
    if settings.ca_file is not None:
        if not settings.ca_file.is_file():
            raise ArchiveError(
                f"importer.dicomweb.ca_file: {settings.ca_file} is not there; set it to a PEM file"
            )
        session.verify = str(settings.ca_file)
    # Compressed answers could grow without bound where they are unpacked.
    session.headers["Accept-Encoding"] = "identity"
    session.max_redirects = 0
    session.hooks["response"].append(_bound)
    retry = Retry(
        total=_RETRIES,
        connect=1,
        backoff_factor=0.5,
        status_forcelist=[429, 502, 503, 504],
        raise_on_status=False,
    )
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _bound(response: requests.Response, *_: Any, **options: Any) -> None:
    if not options.get("stream"):
        response.raw = _Bounded(response.raw)


def _secret(path: Path, setting: str) -> str:
    """One line of a file that nobody else may read. Raises ``ArchiveError``."""
    where = f"importer.dicomweb.{setting}: {path}"
    try:
        if path.stat().st_mode & 0o077:
            raise ArchiveError(f"{where}: other users may read it; chmod 600 it")
        text = path.read_text("ascii").strip()
    except OSError as error:
        raise ArchiveError(f"{where}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        text = ""
    if not text or len(text.splitlines()) != 1:
        raise ArchiveError(f"{where}: must hold one line of ASCII")
    return text


def _refusal(status: int) -> ArchiveError:
    if status in (401, 403):
        return ArchiveError(
            f"importer.dicomweb: the service refuses this user ({status}); check token_file or "
            "login_file, and what the user may read"
        )
    if status == 404:
        return ArchiveError(
            "importer.dicomweb.url: nothing is there (404); set the root under which /studies lies"
        )
    if status in (400, 406, 415):
        return ArchiveError(
            f"importer.dicomweb: the service does not take the request ({status}); check "
            "study_filters and series_filters"
        )
    return ArchiveError(f"importer.dicomweb: the service fails ({status}); try again later")


def _value(item: Json, tag: str) -> str:
    """The first value of an attribute in DICOM JSON (part 18, F.2); "" where it has none."""
    try:
        return str(item[tag]["Value"][0])
    except (KeyError, IndexError, TypeError):
        return ""
