"""Prometheus metrics of a party, on loopback: ``/metrics``, ``/livez``, ``/readyz``, no more."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

Readiness = Callable[[], dict[str, bool]]
_TIMEOUT_S = 10.0


class PortError(ValueError):
    """Metrics that cannot be served; the text names the setting and the fix."""


@contextmanager
def metrics_served(port: int, collector: Collector, readiness: Readiness) -> Iterator[None]:
    """Serves them meanwhile; raises ``PortError`` where the port is not to be had."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)

    class Handler(_Handler):
        metrics = registry
        checks = staticmethod(readiness)

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise PortError(
            f"metrics_port: cannot listen at port {port} ({error.strerror}); "
            "choose a free one above 1023, or 0 for none"
        ) from None
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.2,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    """GET of three paths, nothing else."""

    metrics: CollectorRegistry
    checks: Readiness
    timeout = _TIMEOUT_S
    server_version = "fedstill"
    sys_version = ""

    def do_GET(self) -> None:
        """Answers."""
        if self.path == "/metrics":
            self._answer(HTTPStatus.OK, generate_latest(self.metrics), CONTENT_TYPE_LATEST)
        elif self.path == "/livez":
            self._answer_json(HTTPStatus.OK, {"alive": True})
        elif self.path == "/readyz":
            checks = self.checks()
            ready = all(checks.values())
            status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
            self._answer_json(status, {"ready": ready, "checks": checks})
        else:
            self._answer_json(HTTPStatus.NOT_FOUND, {"error": "/metrics, /livez or /readyz"})

    def _answer_json(self, status: HTTPStatus, document: dict[str, Any]) -> None:
        self._answer(status, json.dumps(document).encode() + b"\n", "application/json")

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """A scrape is no event."""
