"""A site that has joined an aggregator, and a stand-in for that aggregator's edge."""

import http.server
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from email.utils import formatdate
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from aggregator.enrolment import read_enrolment, write_kit
from aggregator.home import AggregatorHome, create_home
from site_agent.cohort import build_cohort
from site_agent.enrolment import enrol
from site_agent.intake.slices import PatientSlices, Slice
from site_agent.kit import join
from site_agent.settings import SiteSettings

CANARY = "CANARY^JANE"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@contextmanager
def served(
    home: AggregatorHome,
    *,
    statuses: dict[str, int] | None = None,
    ahead_s: float = 0.0,
    host: str = "127.0.0.1",
) -> Iterator[int]:
    """A server with the home's certificate; its clock is ``ahead_s`` ahead. Gives the port."""
    answers = {"fleet": 405, "control": 403} | (statuses or {})

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(answers.get(self.path.split("/")[2], 404))
            self.send_header("Date", formatdate(time.time() + ahead_s, usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.tls / "server.crt", home.tls / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def edge(aggregator: AggregatorHome) -> Callable[..., AbstractContextManager[int]]:
    return partial(served, aggregator)


@pytest.fixture
def aggregator(tmp_path: Path) -> AggregatorHome:
    return create_home(tmp_path / "aggregator", {})


@pytest.fixture
def new_site(tmp_path: Path, aggregator: AggregatorHome) -> Callable[..., SiteSettings]:
    """Makes a home with images of a canary's name and a cohort, and lets it join."""

    def make(port: int, *, joins: bool = True, patients: int = 5) -> SiteSettings:
        images = tmp_path / "images" / CANARY
        images.mkdir(parents=True)
        (images / f"{CANARY}.dcm").write_bytes(CANARY.encode())
        address = f"localhost:{port}"
        home = tmp_path / "site"
        settings = enrol(home=home, name="st-anna", aggregator=address, images=images.parent)
        random = np.random.default_rng(0)
        slices = [
            Slice(random.integers(-1000, 500, (40, 40), np.int16), (9.0, 9.0), 3.0)
            for _ in range(2)
        ]
        cohort = [PatientSlices(f"{number:064x}", slices) for number in range(patients)]
        if patients:
            build_cohort(settings.cohort_path, cohort, modality="CT")
        if joins:
            create_home(aggregator.root, {"superlink_port": port})
            fresh = AggregatorHome(aggregator.root)
            kit = write_kit(fresh, read_enrolment(home / "enrolment.json"))
            join(settings, kit, replace=False)
        return settings

    return make
