"""The API in a process of its own behind nginx with the edge's configuration, as it is shipped."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

SHIPPED = Path(__file__).parents[3] / "deploy" / "edge"
SERVE = """
import sys
from pathlib import Path
import uvicorn
from aggregator.api import create_app
uvicorn.run(create_app(Path(sys.argv[1])), fd=int(sys.argv[2]), log_level="warning", ws="none")
"""


@dataclass
class Edge:
    """Both, running."""

    url: str
    """Of nginx."""
    home: Path
    log: Path
    listener: socket.socket
    api: subprocess.Popen[bytes]
    nginx: subprocess.Popen[bytes]
    settings: Path

    def start_api(self) -> None:
        """Starts the API again."""
        self.api = _api(self.home, self.listener)

    def asked(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """What the API itself answers."""
        port = self.listener.getsockname()[1]
        return httpx.request(
            method,
            f"http://127.0.0.1:{port}{path}",
            headers={"X-Forwarded-Proto": "https", **(headers or {})},
            timeout=60,
        )

    @property
    def workers(self) -> list[int]:
        """nginx's processes but the first."""
        here = f"/proc/{self.nginx.pid}/task/{self.nginx.pid}/children"
        return [int(child) for child in Path(here).read_text().split()]

    def lines(self) -> list[str]:
        """Of the log, once it has come to rest: nginx writes a line after it has answered."""
        found, rest = self._written(), 10
        while rest:
            time.sleep(0.03)
            later = self._written()
            rest = 0 if later == found else rest - 1
            found = later
        return found

    def _written(self) -> list[str]:
        return [
            line for file in sorted(self.log.glob("*.log")) for line in file.read_text().split("\n")
        ][:-1]


def program() -> str:
    """Debian's nginx; the test is skipped where there is none."""
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        pytest.skip("needs Debian's package nginx-light")
    return found


def _api(home: Path, listener: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", SERVE, str(home), str(listener.fileno())],
        pass_fds=[listener.fileno()],
    )


def start_nginx(settings: Path, port: int) -> subprocess.Popen[bytes]:
    """nginx, once it listens."""
    process = subprocess.Popen(
        [program(), "-p", settings, "-c", settings / "nginx.conf", "-e", settings / "error.log"]
    )
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, (settings / "error.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            return process


@contextmanager
def edge(
    home: Path, folder: Path, *, requests_a_minute: int = 0, changes: dict[str, str] | None = None
) -> Iterator[Edge]:
    """The shipped files, their addresses changed; ``changes`` are of a test."""
    program()
    (home / "aggregator.toml").write_text(
        f"api_requests_a_minute = {requests_a_minute}\nbehind_proxy = true\n"
        f'accel_prefix = ""\nedge_log = "{home}/edge-log"\n'
    )
    for name in ("", "http", "enabled", "tmp"):
        (folder / name).mkdir()
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        texts = {
            "nginx.conf": "nginx.conf",
            "edge.conf": "edge.conf",
            "http/serving.conf": "serving.conf",
            "enabled/files.conf": "files.conf",
        }
        everything = {
            "listen 8443 ssl": f"listen 127.0.0.1:{port}",
            "127.0.0.1:8080": f"127.0.0.1:{listener.getsockname()[1]}",
            "/aggregator/": f"{home}/",
            "/etc/fedstill/edge": str(folder),
            "/tmp/": f"{folder}/tmp/",
            "worker_processes auto": "worker_processes 1",
            **(changes or {}),
        }
        pattern = re.compile("|".join(map(re.escape, everything)))
        for name, shipped in texts.items():
            text = (SHIPPED / shipped).read_text()
            # Without TLS and without the SuperLink, which test_edge.py has.
            text = re.sub(r"(?m)^ +ssl_.*\n", "", text)
            text = re.sub(r"(?s)    location /v1/fleet/ \{.*?\n    \}\n", "", text)
            text = pattern.sub(lambda found: everything[found[0]], text)
            if name == "nginx.conf" and os.geteuid() == 0:
                text = f"user root;\n{text}"
            (folder / name).write_text(text)
        api = _api(home, listener)
        running = Edge(
            url=f"http://127.0.0.1:{port}",
            home=home,
            log=home / "edge-log",
            listener=listener,
            api=api,
            nginx=start_nginx(folder, port),
            settings=folder,
        )
        try:
            running.asked("GET", "/livez")
            yield running
        finally:
            for process in (running.nginx, running.api):
                process.terminate()
                process.wait(20)
