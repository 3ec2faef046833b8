"""The edge proxy's configuration, run by a real nginx in front of stand-ins."""

import http.server
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aggregator.certificates import ensure_certificates

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "aggregator" / "edge.conf"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Upstream(http.server.BaseHTTPRequestHandler):
    """Answers with its name and notes every path it was asked for."""

    asked: list[str]
    name: str

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append(self.path)
        body = self.name.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def upstream(name: str, *, tls: Path | None) -> Iterator[tuple[int, list[str]]]:
    asked: list[str] = []
    handler = type("Named", (Upstream,), {"asked": asked, "name": name})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls / "server.crt", tls / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def request(url: str, *, authority: Path, method: str = "GET") -> tuple[int, str]:
    context = ssl.create_default_context(cafile=str(authority))
    data = b"{}" if method == "POST" else None
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data=data, method=method), context=context, timeout=10
        ) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[tuple[str, Path, list[str], list[str]]]:
    nginx = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if nginx is None:
        pytest.skip("nginx is not installed")
    tls = tmp_path / "tls"
    tls.mkdir()
    ensure_certificates(tls, names=["aggregator.example.org"])
    port = free_port()
    with upstream("superlink", tls=tls) as (link, fleet), upstream("api", tls=None) as (api, pages):
        server = (
            CONFIGURATION.read_text()
            .replace("listen 8443 ssl", f"listen 127.0.0.1:{port} ssl")
            .replace("127.0.0.1:9443", f"127.0.0.1:{link}")
            .replace("127.0.0.1:8080", f"127.0.0.1:{api}")
            .replace("/aggregator/tls", str(tls))
        )
        temporary = "".join(
            f"{name}_temp_path {tmp_path}/{name};\n"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (tmp_path / "nginx.conf").write_text(
            f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error.log;\n"
            f"events {{}}\nhttp {{ access_log off;\n{temporary}{server} }}\n"
        )
        command = [nginx, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
        process = subprocess.Popen([*command, "-e", str(tmp_path / "error.log")])
        try:
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline and process.poll() is None:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            assert process.poll() is None, (tmp_path / "error.log").read_text()
            yield f"https://localhost:{port}", tls / "ca.crt", fleet, pages
        finally:
            process.terminate()
            process.wait(10)


def test_sites_reach_the_fleet_api_and_nobody_the_control_api(
    edge: tuple[str, Path, list[str], list[str]],
) -> None:
    url, authority, fleet, pages = edge
    assert request(f"{url}/v1/fleet/pull", authority=authority, method="POST") == (200, "superlink")
    assert fleet == ["/v1/fleet/pull"]
    for path in (
        "/v1/control/start-run",
        "/v1/runtime/token",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/V1/control/",
        "//v1/control/start-run",
        "/api/../v1/control/start-run",
        "/",
    ):
        code, _ = request(url + path, authority=authority, method="POST")
        assert code == 403, path
    assert fleet == ["/v1/fleet/pull"]
    assert pages == []
    # A path that only looks like another one arrives as what it is.
    request(f"{url}/v1/control/../fleet/pull", authority=authority, method="POST")
    assert fleet == ["/v1/fleet/pull", "/v1/fleet/pull"]


def test_researchers_reach_the_releases_to_read(
    edge: tuple[str, Path, list[str], list[str]],
) -> None:
    url, authority, fleet, pages = edge
    for path in ("/api/datasets", "/datasets/fedstill/demo/resolve/main/README.md", "/healthz"):
        assert request(url + path, authority=authority) == (200, "api")
        assert request(url + path, authority=authority, method="POST")[0] == 403
    assert len(pages) == 3
    assert fleet == []


def test_researchers_may_accept_an_agreement_and_ask_for_files(
    edge: tuple[str, Path, list[str], list[str]],
) -> None:
    url, authority, fleet, pages = edge
    dataset = f"{url}/api/datasets/fedstill/demo"
    for path in ("agreement", "paths-info/v1"):
        for method in ("GET", "POST"):
            assert request(f"{dataset}/{path}", authority=authority, method=method)[0] == 200
    for path in ("agreement/x", "head", "revision/agreement", "tree/v1/agreement"):
        assert request(f"{dataset}/{path}", authority=authority, method="POST")[0] == 403
    assert len(pages) == 4
    assert fleet == []
