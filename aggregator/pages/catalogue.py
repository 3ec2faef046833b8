"""The catalogue: what there is, and each version with its card, pairs, worth, privacy and files.

Shown is what the API would answer the same person: versions are found by its functions. Of a gated
dataset the page has the card, the agreement and the list of files for all, and what is in the other
files for those who may read them.
"""

import json
import re
import shlex
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import HTMLResponse
from pydantic import ValidationError

from aggregator.access.principals import Standing
from aggregator.api.datasets import Part, find_version
from aggregator.api.errors import ApiError
from aggregator.api.principal import principal, standing
from aggregator.catalog import Catalog, Version
from aggregator.pages import cards
from aggregator.pages.bars import bars, remarks
from aggregator.pages.site import page
from aggregator.store import BlobStore, StoreError
from aggregator.worth import Utility
from shared.release.manifest import MANIFEST, MAX_DOCUMENT_BYTES, SUMS

router = APIRouter(include_in_schema=False)

CARD, PRIVACY_PAGE, PROVENANCE = "README.md", "PRIVACY.md", "provenance.json"
PAIRS, SHEET = "pairs.safetensors", "contact-sheet.png"
MINISIGN = "MANIFEST.json.minisig"
SHOWN_DATASETS, SHOWN_VERSIONS = 20, 20
TOKEN = "export FEDSTILL_TOKEN=…  # from the coordinator\n"
MEASURED, PRIVATE = "What it is worth", "Privacy"
"""Sections of a card that the page has in places of their own."""
_PLAIN = re.compile(r"[A-Za-z0-9._/-]+")
_HOST = re.compile(r"([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:\d{1,5})?")


@dataclass(frozen=True)
class Way:
    """A way to download: what it is, what it checks, and the lines to copy."""

    title: str
    text: str
    lines: str


@router.get("/")
def datasets(
    request: Request,
    q: Annotated[str, Query(max_length=64)] = "",
    page_number: Annotated[int, Query(alias="page", ge=1, le=50_000)] = 1,
) -> HTMLResponse:
    """The datasets by name, a page of them, those that match a search."""
    wanted = " ".join(q.split())
    catalog: Catalog = request.app.state.catalog
    total, newest = catalog.datasets(
        offset=(page_number - 1) * SHOWN_DATASETS,
        limit=SHOWN_DATASETS,
        visible_to=principal(request).visible_to,
        matching=wanted,
    )
    return page(
        "datasets.html",
        q=wanted,
        total=total,
        versions=newest,
        number=page_number,
        pages=max(1, -(-total // SHOWN_DATASETS)),
    )


@router.get("/datasets/{namespace}/{name}")
def newest(
    request: Request,
    namespace: Part,
    name: Part,
    versions: Annotated[int, Query(ge=1, le=50_000)] = 1,
) -> HTMLResponse:
    """A dataset: its newest version."""
    return _version_page(request, find_version(request, namespace, name, "main"), versions)


@router.get("/datasets/{namespace}/{name}/v{number}")
def version(
    request: Request,
    namespace: Part,
    name: Part,
    number: Annotated[str, PathParameter(max_length=16)],
    versions: Annotated[int, Query(ge=1, le=50_000)] = 1,
) -> HTMLResponse:
    """One version; a withdrawn one is a 410 that gives the reason."""
    return _version_page(request, find_version(request, namespace, name, f"v{number}"), versions)


def _version_page(request: Request, version: Version, versions_page: int) -> HTMLResponse:
    catalog: Catalog = request.app.state.catalog
    store: BlobStore = request.app.state.store
    address = f"/datasets/{quote(version.namespace, safe='')}/{quote(version.name, safe='')}"
    files = f"{address}/resolve/v{version.number}/"
    names = tuple(file.path for file in version.files)
    # The card is for all who see the dataset; nothing of another file without this.
    reads = standing(request, version.dataset) is Standing.READS
    card = cards.sections(_text(store, version, CARD), files, names if reads else ())
    private = cards.sections(_text(store, version, PRIVACY_PAGE), files, names) if reads else ()
    utility = _utility(_text(store, version, PROVENANCE)) if reads else None
    own = {MEASURED, PRIVATE}
    first = (versions_page - 1) * SHOWN_VERSIONS
    entries = catalog.versions(
        version.namespace, version.name, offset=first, limit=SHOWN_VERSIONS + 1
    )
    return page(
        "version.html",
        version=version,
        dataset=version.dataset,
        address=address,
        files=files,
        reads=reads,
        card=[section for section in card if section.title not in own],
        measured=next((part.body for part in card if part.title == MEASURED), None),
        private=private or tuple(part for part in card if part.title == PRIVATE),
        bars=bars(utility) if utility else (),
        remarks=remarks(utility) if utility else "",
        pairs=PAIRS if reads and version.file(PAIRS) else None,
        sheet=SHEET if reads and version.file(SHEET) else None,
        bytes=sum(file.bytes for file in version.files),
        entries=entries[:SHOWN_VERSIONS],
        versions_page=versions_page,
        older=len(entries) > SHOWN_VERSIONS,
        ways=ways(version, origin(request)),
        accept=accept_lines(version, origin(request)),
    )


def origin(request: Request) -> str:
    """Where the reader reaches this server, as ``https://host``; what a shell may be given."""
    if not _HOST.fullmatch(request.headers.get("Host", "")):
        raise ApiError(400, "the Host header names no host", "ask by the server's address")
    return f"{request.url.scheme}://{request.headers['Host']}"


def ways(version: Version, server: str) -> list[Way]:
    """How to download a version with our client, with Hugging Face's, and with neither."""
    name, number = f"{version.namespace}/{version.name}", version.number
    files = f"{server}/datasets/{quote(name)}/resolve/v{number}"
    folder, gated = shlex.quote(f"{version.name}-v{number}"), version.dataset.visibility != "public"
    header = '  -H "Authorization: Bearer $FEDSTILL_TOKEN" \\\n' if gated else ""
    token = TOKEN if gated else ""
    signed = version.file(MINISIGN) is not None
    repository = f"{shlex.quote(name)} --repo-type dataset --revision v{number}"
    names = ",".join(quote(file.path) for file in version.files)
    by_hand = [
        f"mkdir {folder}-curl && cd {folder}-curl",
        f"curl -fsS --remote-name-all \\\n{header}  {shlex.quote(f'{files}/{{{names}}}')}",
    ]
    if signed:
        by_hand += [
            f"curl -fsS -o publisher.pub {shlex.quote(f'{server}/api/publisher/minisign.pub')}",
            f"minisign -Vm {MANIFEST} -p publisher.pub",
            f"""jq -r '.files[] | "\\(.sha256)  \\(.path)"' {MANIFEST} | sha256sum -c""",
        ]
    else:
        by_hand.append(f"sha256sum -c {SUMS}")
    return [
        Way(
            "distilled",
            "The publisher's own client: every byte and the signature are checked before the "
            "folder appears.",
            f"pip install fedstill\n{token}distilled get {shlex.quote(f'{name}@v{number}')} "
            f"--from {shlex.quote(server)}",
        ),
        Way(
            "Hugging Face",
            "hf and datasets, unmodified. The revision pins the version; the hashes are checked, "
            "the signature is not.",
            f"export HF_ENDPOINT={shlex.quote(server)}\n"
            # Else Hugging Face is told what is loaded from here.
            "export HF_UPDATE_DOWNLOAD_COUNTS=0 HF_HUB_DISABLE_TELEMETRY=1\n"
            + token.replace("FEDSTILL", "HF")
            + f"hf download {repository} \\\n  --local-dir {folder}-hf\n"
            f"hf cache verify {repository} \\\n  --local-dir {folder}-hf\n"
            + _load_dataset(name, number),
        ),
        Way(
            "curl, sha256sum, minisign" if signed else "curl, sha256sum",
            "What a system has. The publisher's key comes from this server: compare it with the "
            "one you were given on another way."
            if signed
            else "What a system has. It finds a damaged file, not a forged release.",
            token + " &&\n".join(by_hand),
        ),
    ]


def accept_lines(version: Version, server: str) -> str:
    """What accepts the agreement of a gated dataset; the token is the reader's own."""
    path = f"/api/datasets/{quote(version.namespace)}/{quote(version.name)}/agreement"
    body = json.dumps({"version": version.dataset.agreement_version, "accept": True})
    return (
        TOKEN + 'curl -fsS -X POST -H "Authorization: Bearer $FEDSTILL_TOKEN" \\\n'
        f"  -H 'Content-Type: application/json' -d '{body}' \\\n"
        f"  {shlex.quote(server + path)}"
    )


def _load_dataset(name: str, number: int) -> str:
    call = f"load_dataset({name!r}, revision='v{number}')"
    code = f"from datasets import load_dataset; print({call})"
    # Between double quotes it is easier to read; what a shell would take apart there is quoted.
    return f'python -c "{code}"' if _PLAIN.fullmatch(name) else f"python -c {shlex.quote(code)}"


def _text(store: BlobStore, version: Version, path: str) -> str:
    """A text of a release; empty where there is none, or one too long for a page."""
    file = version.file(path)
    if file is None or file.bytes > MAX_DOCUMENT_BYTES:
        return ""
    try:
        return b"".join(store.read(file.sha256, end=file.bytes)).decode("utf-8", "replace")
    except StoreError:
        raise ApiError(
            500, f"the content of {path} is missing", "the server's storage is at fault"
        ) from None


def _utility(text: str) -> Utility | None:
    """What a release's provenance says it is worth; None where it says nothing."""
    try:
        document = json.loads(text)
        # An in-toto statement has what is said in its predicate.
        found = document.get("predicate", document).get("utility")
        return Utility.model_validate(found) if found else None
    except (ValueError, AttributeError, RecursionError, ValidationError):
        return None
