"""A spool, a listener on a free port of loopback, and a DICOMweb service that answers as told."""

import gc
import json
import socket
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from pydicom import dcmread

from site_agent.importer.settings import ListenSettings
from site_agent.importer.spool import Spool

OpenSpool = Callable[..., Spool]


@pytest.fixture
def open_spool(tmp_path: Path) -> OpenSpool:
    def opened(*, quota_bytes: int = 10**8, max_object_bytes: int = 10**7) -> Spool:
        return Spool(
            tmp_path / "spool",
            key=b"k" * 32,
            quota_bytes=quota_bytes,
            max_object_bytes=max_object_bytes,
        )

    return opened


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def collected() -> Iterator[None]:
    """pynetdicom leaves sockets whose peer went away to the garbage collector: here, not later."""
    yield
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("pynetdicom"):
            thread.join(10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def listening(free_port, collected):
    """Starts a listener on a spool: ``with listening(spool) as (port, said)``."""
    from site_agent.importer.listener import Listener

    @contextmanager
    def started(spool: Spool, **settings: object) -> Iterator[tuple[int, list[str]]]:
        said: list[str] = []
        wanted = ListenSettings.model_validate({"callers": ["PACS"], "port": free_port, **settings})

        def note(event, /, **fields):
            said.append(f"{event}: {fields}")

        with Listener(wanted, spool, salt=bytes(32), note=note):
            yield free_port, said

    return started


@pytest.fixture
def serve() -> type["Service"]:
    """``with serve(paths) as service``: the files by DICOMweb at ``service.url``."""
    return Service


class Service:
    """Objects by study and series, over HTTP; attributes change how it answers."""

    def __init__(self, paths):
        self.objects = {}
        for path in paths:
            header = dcmread(path, stop_before_pixels=True)
            key = header.get("StudyInstanceUID", "9.9"), header.SeriesInstanceUID
            self.objects.setdefault(key, {})[str(header.SOPInstanceUID)] = path.read_bytes()
        self.asked = Counter()
        self.queries = []
        self.headers = []
        self.page = 1000
        self.break_after = None  # bytes after which a series' answer breaks off, once
        self.status = None  # of every answer
        self.status_of_series = None
        self.body = None  # of every list
        self.location = None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/dicom-web"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def _handler(self):
        service = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                parts = urlsplit(self.path)
                steps = parts.path.removeprefix("/dicom-web/").split("/")
                query = {key: value[0] for key, value in parse_qs(parts.query).items()}
                service.headers.append(self.headers)
                if service.location is not None:
                    self.send_response(302)
                    self.send_header("Location", service.location)
                    self.end_headers()
                    return
                if service.status is not None:
                    self._answer(service.status, b"CANARY", "text/plain")
                    return
                match steps:
                    case ["studies"]:
                        service.queries.append(query)
                        tag, found = "0020000D", sorted({study for study, _ in service.objects})
                    case ["studies", study, "series"]:
                        service.queries.append(query)
                        tag = "0020000E"
                        found = [series for its, series in service.objects if its == study]
                    case ["studies", study, "series", series, "instances"]:
                        tag, found = "00080018", list(service.objects[study, series])
                    case ["studies", study, "series", series]:
                        service.asked["series"] += 1
                        self._objects(list(service.objects[study, series].values()))
                        return
                    case ["studies", study, "series", series, "instances", uid]:
                        service.asked["instance"] += 1
                        self._objects([service.objects[study, series][uid]])
                        return
                begin = int(query.get("offset", 0))
                chosen = found[begin : begin + min(service.page, int(query["limit"]))]
                items = [{tag: {"vr": "UI", "Value": [uid]}} for uid in chosen]
                body = json.dumps(items).encode() if service.body is None else service.body
                self._answer(200, body, "application/dicom+json")

            def _objects(self, contents):
                if service.status_of_series is not None:
                    self._answer(service.status_of_series, b"CANARY", "text/plain")
                    return
                body = b"".join(
                    b"\r\n--bound\r\nContent-Type: application/dicom\r\n\r\n" + content
                    for content in contents
                )
                kind = 'multipart/related; type="application/dicom"; boundary=bound'
                cut, service.break_after = service.break_after, None
                self._answer(200, body + b"\r\n--bound--", kind, cut=cut)

            def _answer(self, status, body, kind, cut=None):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[:cut])

        return Handler
