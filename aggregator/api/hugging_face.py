"""What only Hugging Face's client asks for: facts of named paths, folders of a release, probes.

A release is one flat folder: no path below its root is a folder, and there is one page.
"""

import json
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Request
from fastapi import Path as PathParameter

from aggregator.api.datasets import Part, Revision, file_entry, find_version, strict
from aggregator.api.errors import ApiError, not_found
from aggregator.api.models import TreeEntry

router = APIRouter()

MAX_BODY_BYTES = 64 * 2**10
MAX_PATHS = 1000
_LIST = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_ASKED = {
    "type": "object",
    "properties": {"paths": _LIST, "expand": {"type": "boolean"}},
    "required": ["paths"],
    "additionalProperties": False,
}


async def asked_paths(request: Request) -> list[str]:
    """The ``paths`` of the body, a form as the client sends it or JSON; else the 413 or 422."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"the body is larger than {MAX_BODY_BYTES} bytes", "ask in parts")
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            document = json.loads(body)
            unknown, paths = set(document) - {"paths", "expand"}, document["paths"]
            expands = [document.get("expand", False)]
        else:
            pairs = parse_qsl(
                body.decode("ascii"),
                keep_blank_values=True,
                strict_parsing=True,
                max_num_fields=2 * MAX_PATHS,
            )
            unknown = {name for name, _ in pairs} - {"paths", "expand"}
            paths = [value for name, value in pairs if name == "paths"]
            said = {"true": True, "false": False}
            expands = [said[value.lower()] for name, value in pairs if name == "expand"]
        if unknown or not isinstance(paths, list) or not 0 < len(paths) <= MAX_PATHS:
            raise ValueError
        if not all(isinstance(path, str) for path in paths):
            raise ValueError
        if not all(isinstance(expand, bool) for expand in expands):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ApiError(
            422,
            "the body is not a list of paths",
            f"send a form or JSON with `paths`, 1 to {MAX_PATHS}, and nothing else but `expand`",
        ) from None
    return paths


@router.post(
    "/api/datasets/{namespace}/{name}/paths-info/{revision}",
    dependencies=strict,
    response_model=list[TreeEntry],
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/x-www-form-urlencoded": {"schema": _ASKED},
                "application/json": {"schema": _ASKED},
            },
        }
    },
)
def paths_info(
    request: Request,
    namespace: Part,
    name: Part,
    revision: Revision,
    paths: Annotated[list[str], Depends(asked_paths)],
) -> list[dict[str, Any]]:
    """Those of the asked paths that are files of the version; others are left out."""
    version = find_version(request, namespace, name, revision)
    found = (version.file(path) for path in dict.fromkeys(paths))
    return [file_entry(file) for file in found if file is not None]


@router.get("/api/datasets/{namespace}/{name}/tree/{revision}/{folder:path}", dependencies=strict)
def folder(
    request: Request,
    namespace: Part,
    name: Part,
    revision: Revision,
    folder: Annotated[str, PathParameter(max_length=256)],
    recursive: bool = False,
    expand: bool = False,
) -> list[dict[str, Any]]:
    """A folder of a version: always the 404 that says that there is none."""
    find_version(request, namespace, name, revision)
    raise not_found(
        "EntryNotFound",
        f"{namespace}/{name}@{revision} has no folder {folder[:128]!r}",
        "a release is one flat folder",
    )


@router.get("/api/agent-harnesses", dependencies=strict)
def agent_harnesses() -> list[dict[str, Any]]:
    """The client asks once a day which programs act for people: this server lists none."""
    raise not_found("EntryNotFound", "no agent harnesses are listed here", "nothing: go on")
