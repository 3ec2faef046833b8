"""The edge proxy's configuration, run by a real nginx in front of stand-ins."""

import http.server
import re
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

EDGE = Path(__file__).parents[2] / "deploy" / "edge"


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


@contextmanager
def proxy(
    tmp_path: Path, *, desk: str | None = None
) -> Iterator[tuple[str, Path, list[str], list[str]]]:
    """The whole configuration, in front of a SuperLink and an API; ``desk`` is what turns it on."""
    nginx = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if nginx is None:
        pytest.skip("nginx is not installed")
    tls = tmp_path / "tls"
    tls.mkdir()
    (tmp_path / "enabled").mkdir()
    ensure_certificates(tls, names=["aggregator.example.org"])
    port = free_port()
    with upstream("superlink", tls=tls) as (link, fleet), upstream("api", tls=None) as (api, pages):
        changes = {
            "listen 8443 ssl": f"listen 127.0.0.1:{port} ssl",
            "127.0.0.1:9443": f"127.0.0.1:{link}",
            "127.0.0.1:8080": f"127.0.0.1:{api}",
            "/aggregator/tls": str(tls),
            "/etc/fedstill/edge": str(tmp_path),
            "/tmp/": f"{tmp_path}/",
            "worker_processes auto": "worker_processes 1",
        }
        # Longer names first: the folder that stands for /tmp may hold one of the others.
        pattern = re.compile("|".join(map(re.escape, sorted(changes, key=len, reverse=True))))
        texts = {name: (EDGE / name).read_text() for name in ("nginx.conf", "edge.conf")}
        if desk is not None:
            texts["enabled/desk.conf"] = desk
        for name, text in texts.items():
            (tmp_path / name).write_text(pattern.sub(lambda found: changes[found[0]], text))
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


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[tuple[str, Path, list[str], list[str]]]:
    with proxy(tmp_path) as running:
        yield running


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
        "/v1/fleet/%2E./control/start-run",
        "/v1/fleet/..%2fcontrol/start-run",
        "/v1/fleet/%2e%2e%2fcontrol%2fstart-run",
        "/v1/fleet/./../runtime/token",
        "/v1/fleet/x/../../control/start-run",
        "/v1//control/start-run",
        "/v1/%63ontrol/start-run",
        "/v1/fleet%2f..%2fcontrol/start-run",
        "/V1/control/",
        "//v1/control/start-run",
        "/api/../v1/control/start-run",
        "/datasets/%2e%2e/v1/runtime/token",
        "/v1/control/../fleet/pull",
        "/",
    ):
        code, _ = request(url + path, authority=authority, method="POST")
        assert code == 403, path
    assert fleet == ["/v1/fleet/pull"]
    assert pages == []


def raw(url: str, authority: Path, lines: str) -> int:
    """The status of a request as it is written here."""
    port = int(url.rpartition(":")[2])
    context = ssl.create_default_context(cafile=str(authority))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(lines.replace("\n", "\r\n").encode() + b"\r\n\r\n")
        return int(connection.recv(64).split()[1])


def test_no_way_of_writing_a_request_reaches_the_control_api(
    edge: tuple[str, Path, list[str], list[str]],
) -> None:
    url, authority, fleet, pages = edge
    path = "/v1/control/start-run"
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "TRACE", "PROPFIND"):
        asked = raw(url, authority, f"{method} {path} HTTP/1.1\nHost: localhost")
        assert asked in (403, 405), method
    for lines in (
        f"POST https://localhost{path} HTTP/1.1\nHost: localhost",
        f"POST {path} HTTP/1.0",
        f"POST {path}#/v1/fleet/ HTTP/1.1\nHost: localhost",
        f"POST {path}?/v1/fleet/ HTTP/1.1\nHost: localhost",
        f"GET {path} HTTP/1.1\nHost: localhost\nConnection: Upgrade\nUpgrade: h2c",
        f"GET /livez HTTP/1.1 {path}\nHost: localhost",
        "CONNECT localhost:9443 HTTP/1.1\nHost: localhost",
    ):
        assert raw(url, authority, lines) in (400, 403, 405), lines
    assert fleet == pages == []
    # Positive control: written by hand a request does arrive; what is encoded twice stays a name.
    for inside in ("pull", "%252e%252e/control/start-run", "..;/control/start-run"):
        lines = f"GET /v1/fleet/{inside} HTTP/1.1\nHost: localhost"
        assert raw(url, authority, lines) == 200
        assert fleet.pop() == f"/v1/fleet/{inside}"


def test_researchers_reach_the_releases_to_read(
    edge: tuple[str, Path, list[str], list[str]],
) -> None:
    url, authority, fleet, pages = edge
    paths = (
        *("/", "/?q=ct", "/static/style.css", "/datasets/fedstill/demo", "/openapi.json"),
        *("/api/datasets", "/datasets/fedstill/demo/resolve/main/README.md", "/livez"),
    )
    for path in paths:
        assert request(url + path, authority=authority) == (200, "api"), path
        assert request(url + path, authority=authority, method="POST")[0] == 403
    assert pages == list(paths)
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


def test_the_desk_is_not_there_until_the_operator_turns_it_on(tmp_path: Path) -> None:
    hidden = ("/desk", "/desk/", "/desk/runs", "/api/desk/runs", "/%64esk/", "/api//desk/runs")
    (tmp_path / "off").mkdir()
    with proxy(tmp_path / "off") as (url, authority, _, pages):
        for path in (*hidden, "/datasets/../desk/", "/static/%2e%2e/desk/"):
            for method in ("GET", "POST"):
                assert request(url + path, authority=authority, method=method)[0] == 403, path
        assert pages == []
    (tmp_path / "on").mkdir()
    with proxy(tmp_path / "on", desk=(EDGE / "desk.conf").read_text()) as running:
        url, authority, _, pages = running
        for path in hidden:
            assert request(url + path, authority=authority, method="POST")[0] == 200, path
        assert request(f"{url}/desktop", authority=authority)[0] == 403
        assert len(pages) == len(hidden)
    (tmp_path / "elsewhere").mkdir()
    others = (EDGE / "desk.conf").read_text().replace("allow 127.0.0.1;", "allow 192.0.2.1;")
    with proxy(tmp_path / "elsewhere", desk=others) as (url, authority, _, pages):
        assert request(f"{url}/desk/", authority=authority)[0] == 403
        assert pages == []


def test_every_public_route_of_the_api_is_let_through(tmp_path: Path) -> None:
    from aggregator.api import create_app
    from aggregator.home import create_home

    text = (EDGE / "edge.conf").read_text()
    ways = [re.compile(way) for way in re.findall(r"^    location ~ (\S+) \{$", text, re.MULTILINE)]
    routes = list(create_app(create_home(tmp_path, {}).root).openapi()["paths"])
    within = ("/desk", "/readyz")  # the coordinator's, and what supervisors on this machine ask
    public = [re.sub(r"\{\w+\}", "x", one) for one in routes if not any(w in one for w in within)]
    assert len(ways) == 2 and len(public) > 10
    closed = [route for route in public if not any(way.search(route) for way in ways)]
    assert closed == [], "let them through in deploy/edge/edge.conf, or leave them out here"
