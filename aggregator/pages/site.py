"""What every page shares: templates, assets by their hash, and the headers that fence a page in.

An asset's address carries the first digits of its SHA-256, so a browser keeps it for ever and a
new one is another address. Pages may load scripts, styles and images from this server alone, run
nothing that stands in the page itself, and be framed by nobody.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from aggregator.api.errors import ApiError

router = APIRouter(include_in_schema=False)

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "Vary": "Accept",
    "X-Content-Type-Options": "nosniff",
}
MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Asset:
    """A file of ``static/``."""

    content: bytes
    media_type: str
    sha256: str


@cache
def assets() -> dict[str, Asset]:
    """What is served below ``/static/``, by name."""
    folder = resources.files("aggregator.pages") / "static"
    found = {}
    for file in folder.iterdir():
        media_type = MEDIA_TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            content = file.read_bytes()
            found[file.name] = Asset(content, media_type, hashlib.sha256(content).hexdigest())
    return found


def asset_address(name: str) -> str:
    """The address of an asset, which changes with its content."""
    return f"/static/{name}?v={assets()[name].sha256[:12]}"


@router.get("/static/{name}")
@router.head("/static/{name}")
def static(request: Request, name: str, v: str = "") -> Response:
    """A script, style or picture of the pages; 304 where the browser has it."""
    asset = assets().get(name)
    if asset is None:
        raise ApiError(404, "no such asset", "the catalogue is at /")
    etag = f'"{asset.sha256}"'
    named = v == asset.sha256[:12]
    headers = {
        "Cache-Control": "public, max-age=31536000, immutable" if named else "no-cache",
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"
        if name.endswith(".svg")
        else "default-src 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
        "ETag": etag,
        "X-Content-Type-Options": "nosniff",
    }
    if request.headers.get("If-None-Match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, headers=headers, media_type=asset.media_type)


def page(template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """A page; what it shows is escaped unless the template says otherwise."""
    text = _templates().get_template(template).render(**values)
    return HTMLResponse(text, status_code=status, headers=HEADERS)


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("aggregator.pages"), PackageLoader("aggregator.desk")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["asset"] = asset_address
    environment.filters["size"] = readable_size
    environment.filters["guarantee"] = guarantee
    environment.filters["moment"] = moment
    environment.filters["ago"] = ago
    return environment


def readable_size(count: int) -> str:
    """Bytes for a person: ``33.6 MB``."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}" if unit != "bytes" else f"{count} bytes"
        amount /= 1000
    return f"{amount:.3g} GB"


def moment(seconds: float | None) -> str:
    """A moment, from seconds since 1970: ``2026-01-31 09:30:00 UTC``."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def ago(seconds: float) -> str:
    """How long ago, for a person: ``12 s ago``, ``3 h ago``."""
    for unit, length, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < most:
            return f"{max(0.0, seconds) / length:.0f} {unit} ago"
    return f"{seconds / 86_400:.0f} days ago"


def guarantee(dp: Any) -> str:
    """What a version's summary says of differential privacy, for a line of text."""
    if not isinstance(dp, dict) or not {"epsilon", "delta"} <= set(dp):
        return "no differential privacy"
    return f"ε = {dp['epsilon']:g} at δ = {dp['delta']:g}, for each patient"
