"""The API in a process of its own: Hugging Face's client, tokens revoked, and nginx in front."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from aggregator.access.audit import Audit
from aggregator.access.tokens import Tokens
from aggregator.catalog import Catalog

SERVE = """
import sys
from pathlib import Path
import uvicorn
from aggregator.api import create_app
uvicorn.run(create_app(Path(sys.argv[1])), fd=int(sys.argv[2]), log_level="warning", ws="none")
"""
DOWNLOAD = """
import sys
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError
try:
    print(hf_hub_download("fedstill/gated", "pairs.bin", repo_type="dataset", token=sys.argv[1]))
except GatedRepoError as error:
    print(error)
    sys.exit(3)
"""
PAIRS = bytes(range(256)) * 8000


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@contextmanager
def serving(home: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-c", SERVE, str(home), str(listener.fileno())]
        with subprocess.Popen(command, pass_fds=[listener.fileno()]) as server:
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                server.terminate()


def test_hugging_faces_client_prints_what_is_missing_and_then_downloads(
    home: Path, tokens: dict[str, str], tmp_path: Path
) -> None:
    with serving(home) as url:

        def download(role: str) -> tuple[int, str]:
            env = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / role)}
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", DOWNLOAD, tokens[role]],
                env={**env, "HF_HUB_DISABLE_TELEMETRY": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
            return done.returncode, done.stdout

        code, said = download("not accepted")
        assert code == 3
        assert "accept version 1 of its data-use agreement" in said
        code, said = download("accepted")
        assert code == 0
        assert Path(said.strip()).read_bytes() == PAIRS


def test_a_token_revoked_here_is_refused_there_within_a_second(
    home: Path, tokens: dict[str, str]
) -> None:
    file = "/datasets/fedstill/gated/resolve/main/pairs.bin"
    with (
        serving(home) as url,
        httpx.Client(base_url=url, headers=bearer(tokens["accepted"]), timeout=60) as c,
    ):
        for _ in range(5):
            assert c.get(file).status_code == 200
        catalog = Catalog(home / "catalog.sqlite")
        time.sleep(1.2)
        # What was downloaded a second ago is written down, while the server runs.
        assert [one.bytes for one in Audit(catalog.database).newest()] == [len(PAIRS)] * 5
        Tokens(catalog.database).revoke("accepted")
        revoked = time.monotonic()
        while c.get(file).status_code != 401:
            assert time.monotonic() - revoked < 1.0
        catalog.close()


@contextmanager
def nginx(folder: Path, blobs: Path, url: str) -> Iterator[str]:
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("needs Debian's package nginx")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    folder.mkdir()
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log stderr error;"
        f"{'user root;' if os.geteuid() == 0 else ''} events {{ worker_connections 64; }}"
        f"http {{ access_log off; {paths} server {{ listen 127.0.0.1:{port};"
        f"location /blobs/ {{ internal; alias {blobs}/; etag off;"
        " add_header ETag $upstream_http_etag; }"
        f"location / {{ proxy_pass {url}; proxy_set_header Host $http_host; }} }} }}"
    )
    with subprocess.Popen([program, "-c", folder / "nginx.conf", "-p", folder]) as server:
        try:
            deadline = time.monotonic() + 10
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert server.poll() is None and time.monotonic() < deadline
                    time.sleep(0.02)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def test_nginx_sends_what_the_api_lets_through_and_nothing_else(
    home: Path, tokens: dict[str, str], tmp_path: Path
) -> None:
    file = "/datasets/fedstill/private/resolve/main/pairs.bin"
    (home / "aggregator.toml").write_text('accel_prefix = "/blobs/"\n')
    with (
        serving(home) as url,
        nginx(tmp_path / "nginx", home / "blobs", url) as edge,
        httpx.Client(base_url=edge, headers=bearer(tokens["named"]), timeout=60) as client,
    ):
        assert client.get("/livez").status_code == 200  # and the API is up
        told = httpx.get(url + file, headers=bearer(tokens["named"]))
        assert told.content == b""
        place = told.headers["X-Accel-Redirect"]
        assert (home / place[1:]).read_bytes() == PAIRS
        # From outside that place is none, with a token or without.
        assert client.get(place).status_code == 404
        whole = client.get(file)
        assert whole.content == PAIRS
        assert whole.headers["ETag"] == client.head(file).headers["ETag"]
        assert "X-Accel-Redirect" not in whole.headers
        part = client.get(file, headers={"Range": "bytes=100-299"})
        assert (part.status_code, part.content) == (206, PAIRS[100:300])
        own = {"Range": "bytes=100-299", "If-Range": whole.headers["ETag"]}
        assert client.get(file, headers=own).content == PAIRS[100:300]
        two = client.get(file, headers={"Range": "bytes=0-1,4-5"})
        assert two.status_code == 416
        assert httpx.get(edge + file).status_code == 404
    catalog = Catalog(home / "catalog.sqlite")
    sent = [one.bytes for one in Audit(catalog.database).newest()]
    catalog.close()
    assert sorted(sent) == [200, 200, len(PAIRS), len(PAIRS)]
