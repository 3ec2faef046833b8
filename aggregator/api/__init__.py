"""The release API and the catalogue's pages: FastAPI over the catalog and the blobs, read-only.

``create_app(home)`` is the one entry. Errors are JSON ``{"error", "hint"}`` and carry the
``X-Error-Code`` that Hugging Face's client turns into its exceptions; a browser gets them as a
page.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from aggregator.access.agreements import Agreements
from aggregator.access.audit import Audit
from aggregator.access.edge_log import EdgeLog
from aggregator.access.recall import Recall
from aggregator.access.tokens import Tokens
from aggregator.api import (
    agreements,
    croissant,
    datasets,
    files,
    health,
    hugging_face,
    publisher,
)
from aggregator.api.edge import Grants
from aggregator.api.errors import ApiError
from aggregator.api.gate import Gate
from aggregator.api.models import PROBLEMS, document
from aggregator.api.rates import Rates
from aggregator.catalog import Catalog
from aggregator.database import Database
from aggregator.heads import Heads
from aggregator.home import AggregatorHome
from aggregator.measure import Measure
from aggregator.pages import catalogue, refusals, site
from aggregator.publisher_keys import PublisherKeys
from aggregator.store import BlobStore


def create_app(home: Path) -> FastAPI:
    """The API over an aggregator's home: its catalog, its blobs and its public key."""
    place = AggregatorHome(home)
    settings = place.publishing
    catalog = Catalog(place.catalog)
    recall = Recall(catalog.database)
    audit = Audit(catalog.database)
    rates = Rates(settings.api_requests_a_minute)
    tokens = Tokens(catalog.database)
    edge_log = _edge_log(settings.edge_log, catalog.database, rates)
    grants = None
    if edge_log is not None:
        grants = Grants(log=edge_log, rates=rates, tokens=tokens, recall=recall)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if edge_log is not None:
            edge_log.start()
        yield
        if edge_log is not None:
            edge_log.close()
        audit.close()
        recall.close()
        catalog.close()

    app = FastAPI(
        title="fedstill",
        version=version("fedstill"),
        lifespan=lifespan,
        docs_url=None,  # these pages would load scripts from another host
        redoc_url=None,
        redirect_slashes=False,
        responses=PROBLEMS,
    )
    app.state.catalog = catalog
    app.state.recall = recall
    app.state.audit = audit
    app.state.rates = rates
    app.state.edge_log = edge_log
    app.state.agreements = Agreements(catalog.database)
    app.state.accel_prefix = settings.accel_prefix
    app.state.store = BlobStore(place.blobs)
    app.state.publisher_key = place.release_key.with_suffix(".pub")
    keys = PublisherKeys(place.release_key.parent)
    keys.ensure()
    app.state.publisher_keys = keys
    app.state.heads = Heads(keys, days=settings.head_days)
    app.include_router(files.router)  # asked for most: found first
    app.include_router(datasets.router)
    app.include_router(agreements.router)
    app.include_router(health.router)
    app.include_router(publisher.router)
    app.include_router(hugging_face.router)
    app.include_router(croissant.router)
    app.include_router(catalogue.router)
    app.include_router(site.router)
    if settings.desk:
        from aggregator.desk import add_desk  # which stands on this package

        add_desk(app, place, catalog.database, refuse=_api_error)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _internal)
    app.add_middleware(
        Gate,
        tokens=tokens,
        recall=recall,
        refuse=_api_error,
        rates=rates,
        grants=grants,
        behind_proxy=settings.behind_proxy,
    )
    app.add_middleware(Measure)  # outermost: what the gate refuses counts too
    described = document(title=app.title, version=app.version, routes=app.routes)
    app.openapi = lambda: described  # type: ignore[method-assign]
    return app


def _edge_log(folder: str, database: Database, rates: Rates) -> EdgeLog | None:
    if not folder:
        return None
    return EdgeLog(
        Path(folder), database, report=lambda who, requests: rates.reported(f"name {who}", requests)
    )


def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _answer(request, error.status, error.error, error.hint, error.headers)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.NOT_FOUND:
        headers["X-Error-Code"] = "EntryNotFound"
    return _answer(
        request, error.status_code, str(error.detail), "GET /openapi.json lists routes", headers
    )


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = "; ".join(
        f"{'.'.join(str(part) for part in item['loc'][1:])}: {item['msg']}"
        for item in error.errors()
    )
    return _answer(request, 422, problems, "correct the request", {})


def _internal(request: Request, _: Exception) -> Response:
    return _answer(request, 500, "internal error", "the server's log has the reason", {})


def _answer(
    request: Request, status: int, error: str, hint: str, headers: dict[str, str]
) -> Response:
    if refusals.wants_page(request):
        return refusals.refusal(request, status, error, hint, headers)
    return JSONResponse(
        {"error": error, "hint": hint}, status_code=status, headers={**headers, "Vary": "Accept"}
    )
