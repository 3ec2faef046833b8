"""The bytes of a release: one route, HEAD and GET, as Hugging Face's client asks.

The ETag is the SHA-256, so a cache knows content by name; one Range is served, more are refused.
"""

import re
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from fastapi.responses import Response, StreamingResponse

from aggregator.api.datasets import Part, Revision, find_version, strict
from aggregator.api.errors import ApiError, not_found
from aggregator.store import BlobStore, StoreError

router = APIRouter()

MEDIA_TYPES = {
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".png": "image/png",
}


PATH = "/datasets/{namespace}/{name}/resolve/{revision}/{path:path}"


@router.head(PATH, dependencies=strict, operation_id="describe_file")
@router.get(PATH, dependencies=strict, operation_id="read_file")
def resolve(
    request: Request,
    namespace: Part,
    name: Part,
    revision: Revision,
    path: Annotated[str, PathParameter(max_length=256)],
) -> Response:
    """A file of a version: 200, 206 for one Range, 304 where the ETag is known, 416, 404."""
    version = find_version(request, namespace, name, revision)
    file = version.file(path)
    if file is None:
        raise not_found(
            "EntryNotFound",
            f"{namespace}/{name}@{revision} has no file {path[:128]!r}",
            f"GET /api/datasets/{namespace}/{name} lists its files",
        )
    etag = f'"{file.sha256}"'
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-cache" if revision == "main" else "public, max-age=86400",
        "ETag": etag,
        "X-Content-Type-Options": "nosniff",
        "X-Repo-Commit": version.commit,
    }
    if _names(request.headers.get("If-None-Match"), etag):
        return Response(status_code=304, headers=headers)
    span = None
    if request.method == "GET" and request.headers.get("If-Range", etag) == etag:
        span = single_range(request.headers.get("Range"), size=file.bytes)
    start, end = span or (0, file.bytes)
    headers["Content-Length"] = str(end - start)
    headers["Content-Disposition"] = f'inline; filename="{file.path}"'
    if span:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.bytes}"
    suffix = file.path[file.path.rfind(".") :]
    media_type = MEDIA_TYPES.get(suffix, "application/octet-stream")
    if request.method == "HEAD":
        return Response(headers=headers, media_type=media_type)
    store: BlobStore = request.app.state.store
    try:
        content = store.read(file.sha256, start=start, end=end)
    except StoreError:
        raise ApiError(
            500, f"the content of {file.path} is missing", "the server's storage is at fault"
        ) from None
    return StreamingResponse(
        content, status_code=206 if span else 200, headers=headers, media_type=media_type
    )


def single_range(header: str | None, *, size: int) -> tuple[int, int] | None:
    """The half-open span a Range header asks of ``size`` bytes; None for the whole.

    As RFC 9110 says, a header that cannot be understood is ignored. Raises the 416 where the span
    lies outside, or where more than one is asked for.
    """
    if header is None or not header.startswith("bytes="):
        return None
    refusal = {"Content-Range": f"bytes */{size}"}
    if "," in header:
        raise ApiError(416, "more than one range", "ask for one range a request", refusal)
    match = re.fullmatch(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", header)
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        start, end = max(size - int(match[2]), 0), size
    else:
        start, end = int(match[1]), min(int(match[2] or size) + 1, size)
        if match[2] and int(match[2]) < start:
            return None
    if start >= end:
        raise ApiError(416, "the range lies outside the file", f"it has {size} bytes", refusal)
    return start, end


def _names(header: str | None, etag: str) -> bool:
    tags = [] if header is None else [part.strip().removeprefix("W/") for part in header.split(",")]
    return etag in tags or "*" in tags
