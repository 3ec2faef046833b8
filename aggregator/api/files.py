"""The bytes of a release: one route, HEAD and GET, as Hugging Face's client asks.

The ETag is the SHA-256, so a cache knows content by name; one Range is served, more are refused.
"""

import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Annotated, ClassVar

from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive, Scope, Send

from aggregator.access.audit import Audit, Download
from aggregator.access.tokens import stamp
from aggregator.api import edge
from aggregator.api.datasets import Part, Revision, find_version, strict
from aggregator.api.errors import ApiError, not_found
from aggregator.api.models import FILE
from aggregator.api.principal import principal
from aggregator.catalog import Version
from aggregator.store import CHUNK_BYTES, BlobStore, StoreError

router = APIRouter()

AT_ONCE_BYTES = 2**20
"""Up to this a file of a folder is read where the request is answered: a thread would cost more."""

PARTS_BYTES = 8 * 2**20
"""What the parts of all files that are being sent may take of memory together, about."""
LEAST_PART_BYTES = 32 * 2**10

MEDIA_TYPES = {
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".png": "image/png",
}


PATH = "/datasets/{namespace}/{name}/resolve/{revision}/{path:path}"


@router.head(
    PATH,
    dependencies=strict,
    operation_id="describe_file",
    response_class=Response,
    responses=FILE,
)
@router.get(
    PATH, dependencies=strict, operation_id="read_file", response_class=Response, responses=FILE
)
async def resolve(
    request: Request,
    namespace: Part,
    name: Part,
    revision: Revision,
    path: Annotated[str, PathParameter(max_length=256)],
) -> Response:
    """A file of a version: 200, 206 for one Range, 304 where the ETag is known, 416, 404."""
    find = partial(find_version, request, namespace, name, revision, reading=True)
    # What is recalled is there at once; the database may take its time.
    known = request.app.state.recall.knows((namespace, name, revision))
    version = find() if known else await run_in_threadpool(find)
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
        "Cache-Control": _caching(version, revision),
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
    kept = not span and edge.may_keep(request, version, size=file.bytes)
    if kept:
        headers["X-Accel-Expires"] = str(edge.KEPT_S)
    if request.method == "HEAD":
        return Response(headers=headers, media_type=media_type)
    audit: Audit = request.app.state.audit
    if audit.full:
        raise ApiError(503, "downloads cannot be recorded now", "try later", {"Retry-After": "30"})
    who = principal(request)

    def record(sent: int) -> None:
        audit.record(
            Download(
                at=stamp(datetime.now(UTC)),
                principal=who.name or None,
                token_id=who.token_id or None,
                dataset=f"{version.namespace}/{version.name}",
                number=version.number,
                path=file.path,
                bytes=sent,
            )
        )

    store: BlobStore = request.app.state.store
    place, prefix = store.path(file.sha256), request.app.state.accel_prefix
    small = request.app.state.edge_log is not None and file.bytes <= edge.MOST_BYTES
    if prefix and place is not None and not small and "If-Range" not in request.headers:
        # nginx knows ranges and other names of content than ours: those with If-Range are ours.
        record(end - start)
        headers["X-Accel-Redirect"] = f"{prefix.rstrip('/')}/{file.sha256[:2]}/{file.sha256}"
        for name_of_body in ("Content-Length", "Content-Range"):
            headers.pop(name_of_body, None)
        return Response(headers=headers, media_type=media_type)
    status = 206 if span else 200
    try:
        if place is not None and end - start <= AT_ONCE_BYTES:
            content = _read(place, start, end)
            return Whole(record, content, status, headers, media_type)
        if place is not None:
            chunks = _parts(place, start, end)
        else:
            chunks = await run_in_threadpool(store.read, file.sha256, start=start, end=end)
    except (StoreError, OSError):
        raise ApiError(
            500, f"the content of {file.path} is missing", "the server's storage is at fault"
        ) from None
    return Stream(record, chunks, status, headers, media_type)


class Whole(Response):
    """Content that is there; records how many bytes of it went out."""

    def __init__(
        self,
        record: Callable[[int], None],
        content: bytes,
        status: int,
        headers: dict[str, str],
        media_type: str,
    ) -> None:
        super().__init__(content, status, headers, media_type)
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        counted = Counted(send)
        try:
            await super().__call__(scope, receive, counted)
        finally:
            self._record(counted.bytes)


class Stream(StreamingResponse):
    """Content by parts; records how many bytes of it went out, also where somebody hangs up."""

    under_way: ClassVar[int] = 0
    """How many are being sent by this process."""

    def __init__(
        self,
        record: Callable[[int], None],
        content: Iterator[bytes],
        status: int,
        headers: dict[str, str],
        media_type: str,
    ) -> None:
        super().__init__(content, status, headers, media_type)
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        counted = Counted(send)
        Stream.under_way += 1
        try:
            await super().__call__(scope, receive, counted)
        finally:
            Stream.under_way -= 1
            self._record(counted.bytes)


class Counted:
    """``send`` that counts what it sends of a body."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.bytes = 0

    async def __call__(self, message: Message) -> None:
        """Sends, then counts."""
        await self._send(message)
        self.bytes += len(message.get("body", b""))


def _read(place: Path, start: int, end: int) -> bytes:
    with place.open("rb", buffering=0) as file:
        content = os.pread(file.fileno(), end - start, start)
    if len(content) != end - start:
        raise StoreError("a blob is shorter than was stored")
    return content


def _parts(place: Path, start: int, end: int) -> Iterator[bytes]:
    """A blob's bytes; raises ``OSError`` at once where it cannot be opened."""
    file = place.open("rb", buffering=0)
    if os.fstat(file.fileno()).st_size < end:
        file.close()
        raise StoreError("a blob is shorter than was stored")
    return _read_on(file, start, end)


def _read_on(file: FileIO, start: int, end: int) -> Iterator[bytes]:
    with file:
        while start < end:
            # A part waits in memory until its receiver takes it: many receivers, small parts.
            fair = PARTS_BYTES // max(Stream.under_way, 1)
            size = min(max(fair, LEAST_PART_BYTES), CHUNK_BYTES, end - start)
            part = os.pread(file.fileno(), size, start)
            if not part:
                raise StoreError("a blob was cut short while it was read")
            start += len(part)
            yield part


def _caching(version: Version, revision: str) -> str:
    """A version's bytes are for ever; who may have them, and what is newest, is not."""
    if version.dataset.visibility != "public":
        return "private, no-cache"
    return "no-cache" if revision == "main" else "public, max-age=86400"


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
