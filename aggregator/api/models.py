"""What the routes answer, as the OpenAPI document tells it."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict
from starlette.routing import BaseRoute


class Answer(BaseModel):
    """Base: a name in JSON is the field's; fields that are not known are none."""

    model_config = ConfigDict(extra="forbid")


class Problem(Answer):
    """Every error: what is wrong, and what to do."""

    error: str
    hint: str


class Alive(Answer):
    """That the API answers."""

    alive: Literal[True]


class Ready(Answer):
    """Whether the API has what it needs, and each of it."""

    ready: bool
    checks: dict[str, bool]
    """``database``, ``store``."""


class VersionItem(Answer):
    """A version in a list."""

    version: int
    digest: str
    createdAt: str  # noqa: N815
    withdrawn: str | None
    """The reason, if it was."""


class VersionPage(Answer):
    """A page of versions."""

    total: int
    limit: int
    offset: int
    versions: list[VersionItem]


class Summary(BaseModel):
    """A version: these, and what the release says of itself."""

    model_config = ConfigDict(extra="allow")

    id: str
    version: int
    digest: str
    sha: str
    bytes: int
    createdAt: str  # noqa: N815
    gated: str | bool
    private: bool


class DatasetPage(Answer):
    """A page of datasets."""

    total: int
    limit: int
    offset: int
    datasets: list[Summary]


class Sibling(Answer):
    """A file, as Hugging Face's client asks for it."""

    rfilename: str
    size: int
    sha256: str


class Detail(Summary):
    """A dataset at one version."""

    lastModified: str  # noqa: N815
    disabled: bool
    downloads: int
    likes: int
    tags: list[str]
    siblings: list[Sibling]
    versions: list[VersionItem]


class Pointer(Answer):
    """What is known of a file's content."""

    oid: str
    size: int
    pointerSize: int  # noqa: N815


class TreeEntry(Answer):
    """A file of a version."""

    type: Literal["file"]
    path: str
    size: int
    oid: str
    lfs: Pointer


class Ref(Answer):
    """A name for a commit."""

    name: str
    ref: str
    targetCommit: str  # noqa: N815


class Refs(Answer):
    """The branch and the tags."""

    branches: list[Ref]
    converts: list[Ref]
    tags: list[Ref]


class AgreementAnswer(Answer):
    """An agreement in its present version."""

    version: int
    text: str
    accepted: bool


class AcceptedAnswer(Answer):
    """That a version of an agreement is accepted."""

    version: int
    accepted: bool


def _problem(description: str) -> dict[str, Any]:
    return {"model": Problem, "description": description}


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: _problem("The request is not understood"),
    401: _problem("The token is not valid, or one is needed"),
    403: _problem("The token does not open this, or an agreement is not accepted"),
    404: _problem("It is not there, or not for you"),
    410: _problem("This version was withdrawn"),
    413: _problem("The body is too large"),
    422: _problem("A parameter or field is not right, or not known"),
    429: _problem("Too many requests: Retry-After says how many seconds to wait"),
    503: _problem("The server cannot do this now"),
}
AGREED: dict[int | str, dict[str, Any]] = {409: _problem("The agreement has another version now")}
UNREADABLE: dict[int | str, dict[str, Any]] = {
    409: _problem("Something in the run's folder is damaged: what, is said")
}
NOT_DONE: dict[int | str, dict[str, Any]] = {
    409: _problem("It is refused, or cannot be done now: why, is said"),
    500: _problem("The aggregator's own command failed"),
    504: _problem("It took too long: do it by command"),
}
_BYTES: dict[str, Any] = {
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    "application/json": {"schema": {}},
    "text/markdown": {"schema": {"type": "string"}},
    "image/png": {"schema": {"type": "string", "format": "binary"}},
}
FILE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file", "content": _BYTES},
    206: {"description": "The range asked for", "content": _BYTES},
    304: {"description": "The content is the one that is known"},
    416: _problem("The range lies outside the file, or is more than one"),
}


def document(*, title: str, version: str, routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """The OpenAPI document: a token may be given anywhere, and must be where one accepts.

    It takes a second to make and follows from the routes alone: apps with the same share it.
    """
    key = (title, version, *sorted(_named(routes)))
    if key not in _documents:
        _documents[key] = _document(title=title, version=version, routes=routes)
    return _documents[key]


_documents: dict[tuple[str, ...], dict[str, Any]] = {}


def _named(routes: Sequence[BaseRoute]) -> Iterator[str]:
    for route in routes:
        path = getattr(route, "path", None)
        router = getattr(route, "original_router", None)
        if path is not None:
            yield f"{sorted(getattr(route, 'methods', None) or ())} {path}"
        elif router is not None:
            yield from _named(router.routes)


def _document(*, title: str, version: str, routes: Sequence[BaseRoute]) -> dict[str, Any]:
    made = get_openapi(title=title, version=version, routes=routes)
    schemes = made.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["token"] = {
        "type": "http",
        "scheme": "bearer",
        "description": "From `aggregator token create`; not needed for what is public.",
    }
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            needed = method == "post" and path.endswith("/agreement")
            operation["security"] = [{"token": []}] if needed else [{}, {"token": []}]
    return made
