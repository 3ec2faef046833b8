"""What the API counts for the metrics: requests by route template, and what was downloaded.

A label is a route as it is declared, never a path that somebody asked for. The process of the API
writes its counts into a folder (``PROMETHEUS_MULTIPROC_DIR``), where `aggregator up`, which serves
them, finds those of all API processes there were.
"""

import time

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REGISTRY = CollectorRegistry()
BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
REQUESTS = Histogram(
    "fedstill_api_request_seconds",
    "time until an answer began, by route",
    ["method", "route", "status"],
    buckets=BUCKETS,
    registry=REGISTRY,
)
DOWNLOADS = Counter("fedstill_downloads", "files of releases sent", registry=REGISTRY)
DOWNLOAD_BYTES = Counter("fedstill_download_bytes", "bytes of them", registry=REGISTRY)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Measure:
    """ASGI middleware: the time of each request until its answer begins."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes it on, and looks at the clock."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def measured(message: Message) -> None:
            if message["type"] == "http.response.start":
                method = scope["method"] if scope["method"] in METHODS else "other"
                route = getattr(scope.get("route"), "path", "none")
                status = f"{message['status'] // 100}xx"
                REQUESTS.labels(method, route, status).observe(time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, measured)


def downloaded(size: int) -> None:
    """A file was sent, or a part of it of so many bytes."""
    DOWNLOADS.inc()
    DOWNLOAD_BYTES.inc(size)
