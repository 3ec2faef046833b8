"""``docker-compose.yml``, run service by service: each one's exact command as it is confined there.

One of the three hospitals takes part, to the point where its SuperNode is ready: it has joined
through the edge proxy, a real nginx with the configuration that is shipped.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.processes import Process, become_subreaper, spawn, stop_all
from tests.deploy.containers import Container, Project

COMPOSE = Path(__file__).parents[2] / "docker-compose.yml"
ONCE = ("a-patients", "a-enrolment", "coordinator", "a-join", "a-separate")
LOOPBACK = (
    "from tests.e2e.sealed import raise_loopback; raise_loopback(); import time; time.sleep(280)"
)
ASK = """
import ssl, sys, httpx
trust = ssl.create_default_context(cafile="/aggregator/tls/ca.crt")
for path in sys.argv[1:]:
    print(httpx.post("https://aggregator:8443" + path, verify=trust).status_code)
"""
LOOK = r"""
import json, os
from pathlib import Path
status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines())
folders = ("/", "/etc", "/usr", "/tmp", "/worker", "/connector", "/images", "/aggregator")
def writes(folder):
    try:
        Path(folder, "x").touch()
        Path(folder, "x").unlink()
    except OSError:
        return False
    return True
print(json.dumps({
    "user": os.getuid(), "bounding": int(status["CapBnd"], 16), "locked": status["NoNewPrivs"],
    "effective": int(status["CapEff"], 16),
    "sees": [f for f in (*folders[4:], "/run/fedstill", "/post") if Path(f).exists()],
    "parts": sorted(f.name for f in Path("/aggregator").glob("*")),
    "writes": [f for f in (*folders, "/run/fedstill") if writes(f)],
}))
"""


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become the services' users")
    for tool in ("unshare", "nsenter", "setpriv"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} (util-linux) is not installed")
    if subprocess.run(["unshare", "-n", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare -n -m is refused here: no container can be imitated")
    folder = Path(tempfile.mkdtemp(prefix="fedstill-trial-"))
    folder.chmod(0o711)
    yield Project(COMPOSE, folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def study(project: Project) -> Iterator[int]:
    """A network of its own, so that the ports of the file are free; gives a process in it."""
    holder = subprocess.Popen(
        ["unshare", "-n", "--", sys.executable, "-c", LOOPBACK], cwd=COMPOSE.parent
    )
    yield holder.pid
    holder.kill()
    holder.wait()


def run(container: Container, network: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        container.start(network=network), capture_output=True, text=True, check=False, timeout=90
    )


def until(condition: Callable[[], bool], *, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.5)


def test_what_runs_once_ends_well_and_can_be_repeated(project: Project, study: int) -> None:
    for name in ONCE:
        done = run(project.container(name), study)
        assert done.returncode == 0, f"{name}: {done.stderr}"
    keys = {
        path: path.read_bytes()
        for path in project.folder.rglob("*")
        if path.suffix in (".key", ".crt", ".pub") or path.parent.name == "keys"
    }
    assert len(keys) > 8
    for name in ("a-enrolment", "coordinator", "a-separate"):
        done = run(project.container(name), study)
        assert done.returncode == 0, f"{name}, again: {done.stderr}"
    assert {path: path.read_bytes() for path in keys} == keys, "a second `up` makes no new keys"
    # What one party alone may have, the others' users cannot read.
    for private in ("aggregator", "a-worker", "a-connector"):
        assert (project.folder / private).stat().st_mode & 0o077 == 0


def test_services_are_confined_as_the_file_says(project: Project, study: int) -> None:
    found = {}
    for name in ("a-worker", "a-supernode", "aggregator", "edge", "a-separate"):
        done = run(project.container(name).runs("python", "-c", LOOK), study)
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout)
        assert found[name]["locked"] == "1"
        if name != "a-separate":
            assert found[name]["bounding"] == found[name]["effective"] == 0
    # Positive control: the one that may change owners is seen to have what it needs for that.
    assert found["a-separate"]["user"] == 0
    assert found["a-separate"]["bounding"] == 0b1011
    worker, supernode = found["a-worker"], found["a-supernode"]
    assert (worker["user"], supernode["user"]) == (10001, 10002)
    assert worker["sees"] == ["/worker", "/images", "/run/fedstill"]
    assert worker["writes"] == ["/tmp", "/worker", "/run/fedstill"]
    assert supernode["sees"] == ["/connector", "/run/fedstill"]
    assert supernode["writes"] == ["/tmp", "/connector"]
    assert found["aggregator"]["writes"] == ["/tmp", "/aggregator"]
    assert {"keys", "coordinators"} < set(found["aggregator"]["parts"])
    assert found["edge"]["parts"] == ["blobs", "tls"]
    assert found["edge"]["writes"] == ["/tmp"]


def test_the_worker_has_no_network(project: Project, study: int) -> None:
    reach = "import socket; socket.create_connection(('127.0.0.1', 9), 2)"
    refused = run(project.container("a-worker").runs("python", "-c", reach), study)
    assert "Network is unreachable" in refused.stderr
    # Positive control: with the study's network the same address is reached, and refused.
    reached = run(project.container("a-supernode").runs("python", "-c", reach), study)
    assert "Connection refused" in reached.stderr


@pytest.mark.slow
def test_a_hospital_joins_through_the_edge_proxy(project: Project, study: int) -> None:
    if not shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"):
        pytest.skip("nginx is not installed")
    become_subreaper()
    running: list[Process] = []

    def up(name: str) -> Container:
        container = project.container(name)
        command = container.start(network=study)
        running.append(
            spawn(command, log=project.folder / "logs" / f"{name}.log", cwd=COMPOSE.parent)
        )
        return container

    def healthy(container: Container) -> bool:
        for process in running:
            assert process.poll() is None, "".join(process.lines())
        return run(container.runs(*container.health), study).returncode == 0

    try:
        aggregator = up("aggregator")
        worker = up("a-worker")
        assert not healthy(worker), "positive control: nothing answers yet"
        until(lambda: healthy(aggregator), within_s=60)
        up("edge")
        until(lambda: healthy(worker), within_s=60)
        supernode = up("a-supernode")
        assert not healthy(supernode), "positive control: it has not joined yet"
        until(lambda: healthy(supernode), within_s=60)
        listed = run(aggregator.runs("aggregator", "site", "list", "--json"), study)
        assert '"online"' in listed.stdout, listed.stdout + listed.stderr
        paths = ["/v1/control/start-run", "/v1/runtime/token", "/v1/fleet/../control/start-run"]
        asked = run(aggregator.runs("python", "-c", ASK, *paths, "/v1/fleet/no-such"), study)
        assert asked.stdout.split()[:3] == ["403"] * 3, asked.stderr
        assert asked.stdout.split()[3] != "403", "positive control: the fleet's way is open"
    finally:
        stop_all(list(reversed(running)), grace_s=8)
