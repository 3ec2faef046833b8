"""What is published: datasets and their versions, as JSON.

Shapes follow the Hugging Face hub where it has one, with our own fields beside.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi import Path as PathParameter

from aggregator.access.principals import Standing
from aggregator.access.recall import Recall
from aggregator.api.errors import ApiError, coded, not_found
from aggregator.api.models import DatasetPage, Detail, Refs, TreeEntry, VersionPage
from aggregator.api.principal import absent, principal, require_reading, standing
from aggregator.catalog import Catalog, Dataset, StoredFile, Version, VersionEntry

router = APIRouter()

MAX_TAGS = 1000
"""Hugging Face's route of tags has no pages."""

Part = Annotated[str, PathParameter(max_length=63)]
Revision = Annotated[str, PathParameter(max_length=64)]


async def known_parameters(request: Request) -> None:
    """Refuses query parameters that the route does not take, so that a typo is no silence."""
    if not request.query_params:
        return
    allowed = {field.alias for field in request.scope["route"].dependant.query_params}
    unknown = sorted(set(request.query_params) - allowed)
    if unknown:
        takes = f"it takes {', '.join(sorted(allowed))}" if allowed else "it takes none"
        raise ApiError(
            422, f"unknown query parameter {unknown[0][:64]!r}", f"leave it out: {takes}"
        )


strict = [Depends(known_parameters)]


@router.get("/api/datasets", dependencies=strict, response_model=DatasetPage)
def list_datasets(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> dict[str, Any]:
    """The datasets by name, each with its newest version."""
    total, newest = _catalog(request).datasets(
        offset=offset, limit=limit, visible_to=principal(request).visible_to
    )
    return {
        "total": total,
        "limit": limit,
        "offset": offset,
        "datasets": [_summary(version) for version in newest],
    }


@router.get("/api/datasets/{namespace}/{name}", dependencies=strict, response_model=Detail)
def dataset(request: Request, namespace: Part, name: Part) -> dict[str, Any]:
    """A dataset: its newest version, and all of them."""
    return _detail(request, find_version(request, namespace, name, "main"))


@router.get(
    "/api/datasets/{namespace}/{name}/revision/{revision}",
    dependencies=strict,
    response_model=Detail,
)
def revision(request: Request, namespace: Part, name: Part, revision: Revision) -> dict[str, Any]:
    """One version by ``main``, ``vN`` or digest."""
    return _detail(request, find_version(request, namespace, name, revision))


@router.get(
    "/api/datasets/{namespace}/{name}/versions", dependencies=strict, response_model=VersionPage
)
def list_versions(
    request: Request,
    namespace: Part,
    name: Part,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> dict[str, Any]:
    """The versions of a dataset, newest first, withdrawn ones with the reason."""
    found = find_dataset(request, namespace, name)
    catalog = _catalog(request)
    return {
        "total": found.last_number,
        "limit": limit,
        "offset": offset,
        "versions": [
            _entry(one) for one in catalog.versions(namespace, name, offset=offset, limit=limit)
        ],
    }


@router.get(
    "/api/datasets/{namespace}/{name}/tree/{revision}",
    dependencies=strict,
    response_model=list[TreeEntry],
)
def tree(
    request: Request,
    namespace: Part,
    name: Part,
    revision: Revision,
    recursive: bool = False,
    expand: bool = False,
) -> list[dict[str, Any]]:
    """The files of a version; ``recursive`` and ``expand`` change nothing, a release is flat."""
    return [file_entry(file) for file in find_version(request, namespace, name, revision).files]


def file_entry(file: StoredFile) -> dict[str, Any]:
    """A file as Hugging Face's client reads it; stored as if by LFS, so that it has a SHA-256."""
    return {
        "type": "file",
        "path": file.path,
        "size": file.bytes,
        "oid": file.sha256[:40],
        "lfs": {"oid": file.sha256, "size": file.bytes, "pointerSize": 128},
    }


@router.get("/api/datasets/{namespace}/{name}/refs", dependencies=strict, response_model=Refs)
def refs(request: Request, namespace: Part, name: Part) -> dict[str, Any]:
    """The newest version as branch ``main``, versions that are not withdrawn as tags."""
    newest = find_version(request, namespace, name, "main")
    versions = _catalog(request).versions(namespace, name, limit=MAX_TAGS)
    return {
        "branches": [
            {"name": "main", "ref": "refs/heads/main", "targetCommit": newest.commit},
        ],
        "converts": [],
        "tags": [
            {
                "name": f"v{version.number}",
                "ref": f"refs/tags/v{version.number}",
                "targetCommit": version.commit,
            }
            for version in reversed(versions)
            if version.withdrawn is None
        ],
    }


def find_dataset(request: Request, namespace: str, name: str) -> Dataset:
    """The dataset asked for, or the 404: it is absent, had no version yet, or is not theirs."""
    found = None
    if "\0" not in namespace + name:  # which PostgreSQL takes in no text
        found = _catalog(request).describe(namespace, name)
    if found is None or not found.last_number or standing(request, found) is Standing.ABSENT:
        raise absent(namespace, name)
    return found


def find_version(
    request: Request, namespace: str, name: str, revision: str, *, reading: bool = False
) -> Version:
    """The version asked for, or the 404 that says whether dataset or revision is absent.

    ``reading``: its files too, so that for a gated dataset the agreement must be accepted; that
    is the 401 or 403.

    A withdrawn version is a 410: ``{"error", "hint"}``, of which ``error`` ends in the reason, and
    ``X-Error-Code: RevisionWithdrawn``. ``main`` is one only where every version is withdrawn.
    """
    if "\0" in namespace + name + revision:
        raise absent(namespace, name)
    catalog, recall = _catalog(request), request.app.state.recall
    assert isinstance(recall, Recall)
    version = recall.answer(
        (namespace, name, revision), lambda: catalog.find(namespace, name, revision)
    )
    if version is None:
        found = find_dataset(request, namespace, name)
    else:
        found = version.dataset
        if standing(request, found) is Standing.ABSENT:
            raise absent(namespace, name)
    if reading:
        require_reading(request, found)
    if version is not None and version.withdrawn is None:
        return version
    if version is not None and version.withdrawn is not None:
        raise coded(
            410,
            "RevisionWithdrawn",
            f"{namespace}/{name}@v{version.number} was withdrawn on"
            f" {version.withdrawn.at[:10]}: {version.withdrawn.reason}",
            f"GET /api/datasets/{namespace}/{name} names the newest version",
        )
    raise not_found(
        "RevisionNotFound",
        f"{namespace}/{name} has no version {revision}",
        f"GET /api/datasets/{namespace}/{name} lists its versions",
    )


def _catalog(request: Request) -> Catalog:
    catalog = request.app.state.catalog
    assert isinstance(catalog, Catalog)
    return catalog


def _summary(version: Version) -> dict[str, Any]:
    return {
        **version.summary,
        "id": f"{version.namespace}/{version.name}",
        "version": version.number,
        "digest": version.digest,
        "sha": version.commit,
        "bytes": sum(file.bytes for file in version.files),
        "createdAt": version.created_at,
        "private": version.dataset.visibility == "private",
        "gated": "manual" if version.dataset.visibility == "gated" else False,
    }


def _detail(request: Request, version: Version) -> dict[str, Any]:
    # The newest hundred; /versions has all, by pages.
    versions = _catalog(request).versions(version.namespace, version.name, limit=100)
    return {
        **_summary(version),
        "lastModified": version.created_at,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [
            {"rfilename": file.path, "size": file.bytes, "sha256": file.sha256}
            for file in version.files
        ],
        "versions": [_entry(one) for one in reversed(versions)],
    }


def _entry(one: VersionEntry) -> dict[str, Any]:
    return {
        "version": one.number,
        "digest": one.digest,
        "createdAt": one.created_at,
        "withdrawn": one.withdrawn.reason if one.withdrawn else None,
    }
