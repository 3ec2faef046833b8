"""A version as Croissant, the JSON-LD that machine-learning tools load, with absolute addresses."""

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from aggregator.api.datasets import Part, find_version, strict
from aggregator.api.errors import ApiError, not_found
from aggregator.croissant import CROISSANT, served
from aggregator.store import BlobStore, StoreError

router = APIRouter()


class JsonLd(JSONResponse):
    """JSON for linked data, which Croissant is."""

    media_type = "application/ld+json"


@router.get(
    "/api/datasets/{namespace}/{name}/croissant",
    dependencies=strict,
    response_class=Response,  # else errors too are said to be JSON-LD
    responses={200: {"content": {JsonLd.media_type: {"schema": {"type": "object"}}}}},
)
def croissant(
    request: Request,
    namespace: Part,
    name: Part,
    revision: Annotated[str, Query(max_length=64)] = "main",
) -> JsonLd:
    """The Croissant 1.1 document of a version, of the newest where none is named."""
    version = find_version(request, namespace, name, revision)
    file = version.file(CROISSANT)
    if file is None:
        raise not_found(
            "EntryNotFound",
            f"{namespace}/{name}@{revision} has no {CROISSANT}: it was published before there was",
            "ask for a newer version",
        )
    store: BlobStore = request.app.state.store
    try:
        content = b"".join(store.read(file.sha256, start=0, end=file.bytes))
    except StoreError:
        raise ApiError(
            500, f"the content of {CROISSANT} is missing", "the server's storage is at fault"
        ) from None
    page = f"{request.base_url}datasets/{quote(namespace, safe='')}/{quote(name, safe='')}"
    document = served(
        content,
        page=f"{page}/v{version.number}",
        files=f"{page}/resolve/v{version.number}/",
        number=version.number,
        created_at=version.created_at,
    )
    headers = {"X-Repo-Commit": version.commit}
    return JsonLd(document, headers=headers)
