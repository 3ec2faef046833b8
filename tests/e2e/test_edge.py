"""`aggregator up` with ``edge = true``: a real nginx before a real SuperLink and API."""

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from aggregator.home import create_home
from aggregator.release import publish
from shared.contract import RunContract
from shared.processes import remains_of
from shared.release.keys import read_private_key

AGGREGATOR = Path(sys.executable).with_name("aggregator")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def status(url: str, authority: Path) -> int:
    context = ssl.create_default_context(cafile=str(authority))
    try:
        with urllib.request.urlopen(url, context=context, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except urllib.error.URLError:
        return 0


def await_line(log: Path, text: str, *, count: int = 1, within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while log.read_text().count(text) < count:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_up_starts_the_edge_which_passes_sites_alone_and_comes_back(tmp_path: Path) -> None:
    if shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("needs Debian's package nginx")
    link, api, edge, metrics = free_ports(4)
    home = create_home(tmp_path / "home", {"superlink_port": link, "api_port": api})
    text = home.settings_file.read_text()
    for name, value in (
        *(("edge", "true"), ("edge_port", str(edge)), ("behind_proxy", "true")),
        *(("metrics_port", str(metrics)), ("accel_prefix", '"/blobs/"')),
    ):
        text = text.replace(f"\n{name} = ", f"\n{name} = {value} # ")
    home.settings_file.write_text(text)
    content = bytes(range(256)) * 8000  # more than the API answers at once
    publish(
        home=home.root,
        contract=RunContract(name="ct-demo"),
        files={"README.md": b"# demo", "pairs.bin": content},
        key=read_private_key(home.release_key),
    )
    log, authority, url = tmp_path / "up.log", home.tls / "ca.crt", f"https://localhost:{edge}"
    environment = {key: value for key, value in os.environ.items() if key != "FEDSTILL_LOG_FORMAT"}
    with log.open("w") as output:
        up = subprocess.Popen(
            [AGGREGATOR, "up", "--home", home.root], stdout=output, stderr=output, env=environment
        )
    try:
        await_line(log, "edge ready")
        # 405: the SuperLink itself, which takes questions by POST alone.
        assert status(f"{url}/v1/fleet/pull-messages", authority) == 405
        for path in ("/v1/control/list-nodes", "/v1/runtime/x", "/readyz", "/v1/fleet/../control"):
            assert status(url + path, authority) == 403, path
        # Positive control: behind the edge it is there.
        assert status(f"https://localhost:{link}/v1/control/list-nodes", authority) == 405
        assert status(f"{url}/livez", authority) == 200
        file = f"{url}/datasets/fedstill/ct-demo/resolve/main/pairs.bin"
        context = ssl.create_default_context(cafile=str(authority))
        with urllib.request.urlopen(file, context=context, timeout=10) as answer:
            assert answer.read() == content  # nginx reads the blob, where the API sends it
            assert answer.headers["Server"] == "nginx"
        assert status(f"{url}/blobs/", authority) == 404
        doctor = subprocess.run(
            [AGGREGATOR, "doctor", "--home", home.root, "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert doctor.returncode == 0, doctor.stdout
        assert "passes /v1/fleet and the API, nothing else" in doctor.stdout
        os.kill(int((home.root / "edge" / "tmp" / "nginx.pid").read_text()), signal.SIGKILL)
        await_line(log, '"service": "edge"', count=2)
        assert status(f"{url}/livez", authority) == 200
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=20) as answer:
            told = answer.read().decode()
        assert 'fedstill_service_restarts_total{service="edge"} 1.0' in told
        assert 'fedstill_service_restarts_total{service="superlink"} 0.0' in told
    finally:
        up.send_signal(signal.SIGTERM)
        assert up.wait(30) == 0
    assert remains_of(up.pid) == []
    assert "aggregator stopped" in log.read_text()
