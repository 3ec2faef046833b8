"""Who publishes, and what stands: the keys, the chain of key lists, and the signed heads."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from aggregator.api.datasets import Part, find_dataset, strict
from aggregator.api.errors import ApiError
from aggregator.catalog import Catalog
from aggregator.heads import Heads
from aggregator.publisher_keys import PublisherKeys
from shared.release.errors import LocalError
from shared.release.keys import encode_key, key_id, read_public_key
from shared.release.minisign import public_key_text

router = APIRouter()


@router.get("/api/publisher", dependencies=strict)
def publisher(request: Request) -> dict[str, str]:
    """The key releases are signed with."""
    try:
        key = read_public_key(request.app.state.publisher_key)
    except LocalError:
        raise _no_keys() from None
    return {"algorithm": "Ed25519", "key": encode_key(key), "key_id": key_id(key)}


@router.get(
    "/api/publisher/minisign.pub",
    dependencies=strict,
    response_class=Response,  # else errors too are said to be plain text
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def minisign_key(request: Request) -> PlainTextResponse:
    """That key as `minisign -p` reads it."""
    try:
        key = read_public_key(request.app.state.publisher_key)
    except LocalError:
        raise _no_keys() from None
    return PlainTextResponse(public_key_text(key))


@router.get("/api/publisher/keys", dependencies=strict)
def publisher_keys(request: Request) -> dict[str, Any]:
    """The chain of signed key lists, oldest first: what a client verifies keys by."""
    keys: PublisherKeys = request.app.state.publisher_keys
    try:
        return keys.chain().model_dump(mode="json")
    except LocalError:
        raise _no_keys() from None


@router.get("/api/datasets/{namespace}/{name}/head", dependencies=strict)
def head(request: Request, namespace: Part, name: Part) -> dict[str, Any]:
    """Which version is the newest and which are withdrawn, signed, until it expires."""
    find_dataset(request, namespace, name)
    catalog: Catalog = request.app.state.catalog
    heads: Heads = request.app.state.heads
    published = catalog.head(namespace, name)
    assert published is not None
    try:
        return heads.signed(namespace, name, published).model_dump(mode="json")
    except LocalError:
        raise _no_keys() from None


def _no_keys() -> ApiError:
    return ApiError(503, "this server has no keys to sign with", "run `aggregator init` there")
