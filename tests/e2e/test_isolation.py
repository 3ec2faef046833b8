"""A site as it is meant to be installed: two users, a worker without a network, one way out.

The connector has a network of its own without a route: only the aggregator's port is there, on its
loopback, by a relay over a Unix socket. The worker has no network at all. Each is a user of its
own without capabilities. Every connect(2) of the connector's processes is written down.
"""

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.home import AggregatorHome
from shared.contract import RunContract
from shared.guardian import descendants
from shared.processes import Process, become_subreaper, spawn, stop_all, wait_for_line
from site_agent.apart import set_apart
from site_agent.cohort import build_cohort
from site_agent.enrolment import enrol
from site_agent.events import Event
from site_agent.intake.slices import PatientSlices, Slice
from site_agent.kit import join
from site_agent.settings import SiteSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

BINARIES = Path(sys.executable).parent
SEALED = Path(__file__).with_name("sealed.py")
WORKER, CONNECTOR, GROUP = 20001, 20002, 20000
CONTRACT = """
name = "tiny"
images = 2
student = { depth = 2, width = 4 }
anchor_network = { depth = 2, width = 4 }
probes = { requests = 2, depths = [1, 2], steps = 2, draws = 1 }
anchor = { rounds = 1, local_steps = 1, batch = 1, crop_px = 16, public_steps = 2 }
task = { size_px = 32, angles = 30, bins = 48 }
"""


def refused(*command: str | Path) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode != 0
    except OSError:
        return True


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@dataclass
class Site:
    """An aggregator, and a site in two parts that share a folder for a socket."""

    root: Path
    worker: SiteSettings
    connector: SiteSettings
    aggregator: AggregatorHome
    running: dict[str, Process] = field(default_factory=dict)

    @property
    def trace(self) -> Path:
        return self.root / "trace"

    def command(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BINARIES / "aggregator", *arguments, "--home", self.aggregator.root],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=150,
        )

    def spawn(self, name: str, *command: str | Path, ready: str | None, home: Path) -> None:
        process = spawn(
            [str(part) for part in command],
            log=self.root / "logs" / f"{name}.log",
            env={"OMP_NUM_THREADS": "1", "FEDSTILL_THREADS": "1", "HOME": str(home)},
            cwd=self.root,
        )
        self.running[name] = process
        if ready is not None:
            wait_for_line(process, ready, timeout_s=60)

    def up(self) -> None:
        root = self.aggregator.root
        self.spawn("up", BINARIES / "aggregator", "up", "--home", root, ready="ready on", home=root)
        port = str(self.aggregator.settings.superlink_port)
        relay = [sys.executable, SEALED.with_name("relay.py"), self.root / "out.sock", port]
        self.spawn("relay", *relay, ready="relay ready", home=root)

    def down(self) -> None:
        """No new connection is taken; then those that are there end."""
        (self.root / "out.sock").unlink()
        time.sleep(0.2)
        stop_all([self.running.pop(name) for name in ("up", "relay")], grace_s=15)

    def start_worker(self) -> None:
        user = ["--user", str(WORKER), "--group", str(GROUP)]
        self.spawn(
            *("worker", "unshare", "-n", "-m", "--", sys.executable, SEALED, *user, "--"),
            *(BINARIES / "site-agent", "worker", "--home", self.worker.home),
            ready="worker ready",
            home=self.worker.home,
        )

    def start_connector(self) -> None:
        port = str(self.aggregator.settings.superlink_port)
        user = ["--user", str(CONNECTOR), "--group", str(CONNECTOR), "--groups", str(GROUP)]
        way_out = ["--relay", port, str(self.root / "out.sock")]
        trace = ["--trace", str(self.trace)] if shutil.which("strace") else []
        self.spawn(
            *("connector", "unshare", "-n", "-m", "--", sys.executable, SEALED, *user, *way_out),
            *(*trace, "--", BINARIES / "site-agent", "connect", "--home", self.connector.home),
            ready=None,
            home=self.connector.home,
        )

    def processes(self, name: str, word: str) -> list[int]:
        """Those below ``name`` that run ``word``, and are neither strace nor setpriv."""
        found = []
        for pid in descendants(self.running[name].pid) if name in self.running else []:
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if any(word.encode() in one for one in words) and b"python" in words[0]:
                    found.append(pid)
        return found

    def ask(self, path: str) -> tuple[int, str]:
        """What the connector serves, asked from within its network; 0 where it does not yet."""
        pids = self.processes("connector", "site-agent")
        if not pids:
            return 0, ""
        url = f"http://127.0.0.1:{self.connector.metrics_port}{path}"
        code = (
            "import http.client, sys, urllib.parse as u; p = u.urlsplit(sys.argv[1])\n"
            "c = http.client.HTTPConnection(p.hostname, p.port); c.request('GET', p.path)\n"
            "r = c.getresponse(); print(r.status); print(r.read().decode())"
        )
        done = subprocess.run(
            ["nsenter", "-t", str(pids[0]), "-n", sys.executable, "-I", "-c", code, url],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        status, _, body = done.stdout.partition("\n")
        return (int(status), body) if done.returncode == 0 else (0, "")

    def checks(self) -> dict[str, bool]:
        """The checks of /readyz; none before it is served."""
        status, body = self.ask("/readyz")
        if status == 0:
            return {}
        document = json.loads(body)
        assert (status == 200) == document["ready"] == all(document["checks"].values())
        checks: dict[str, bool] = document["checks"]
        return checks

    def launch(self, *, seed: int) -> dict[str, Any]:
        """A run that must succeed; what came of it."""
        file = self.root / f"contract-{seed}.toml"
        file.write_text(f"seed = {seed}\n{CONTRACT}")
        done = self.command("launch", file)
        assert done.returncode == 0, done.stderr
        digest = RunContract.model_validate(tomllib.loads(file.read_text())).digest()
        result = self.aggregator.run_folder(digest) / "result.json"
        document: dict[str, Any] = json.loads(result.read_text())
        return document


def until(condition: Any, *, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.3)


@pytest.fixture
def site() -> Iterator[Site]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become two other users")
    if refused("unshare", "-n", "-m", "true"):
        pytest.skip("unshare -n -m is refused here: no network can be taken away")
    root = Path(tempfile.mkdtemp(prefix="fedstill-isolation-"))
    root.chmod(0o711)
    become_subreaper()
    try:
        made = prepared(root)
        try:
            yield made
        finally:
            # strace, above it, does not pass the signal on.
            for pid in made.processes("connector", "site-agent"):
                os.kill(pid, signal.SIGTERM)
            stop_all(list(reversed(made.running.values())), grace_s=4)
    finally:
        shutil.rmtree(root)


def prepared(root: Path) -> Site:
    superlink, api, metrics = free_ports(3)
    home = AggregatorHome(root / "aggregator")
    ports = ["--superlink-port", str(superlink), "--api-port", str(api)]
    subprocess.run(
        [BINARIES / "aggregator", "init", *ports, "--home", home.root],
        check=True,
        capture_output=True,
    )
    images = root / "images"
    images.mkdir(mode=0o700)
    address = f"localhost:{superlink}"
    worker = enrol(home=root / "worker", name="st-anna", aggregator=address, images=images)
    with (worker.home / "site.toml").open("a") as settings:
        settings.write(f"metrics_port = {metrics}\n")
    add = [BINARIES / "aggregator", "site", "add", worker.home / "enrolment.json", "--json"]
    added = subprocess.run([*add, "--home", home.root], check=True, capture_output=True)
    join(worker, Path(json.loads(added.stdout)["kit"]), replace=False)
    hu = np.random.default_rng(0).integers(-1000, 500, (40, 40)).astype(np.int16)
    build_cohort(
        worker.cohort_path,
        [PatientSlices(f"{n:032x}", [Slice(hu, (1.0, 1.0), 2.0)]) for n in range(6)],
        modality="CT",
    )
    for folder, user, group, mode in (
        (root / "connector", CONNECTOR, CONNECTOR, 0o700),
        (root / "run", WORKER, GROUP, 0o750),
    ):
        folder.mkdir()
        os.chown(folder, user, group)
        folder.chmod(mode)
    os.chown(worker.home, WORKER, GROUP)
    meeting = root / "run" / "worker.sock"
    connector = set_apart(worker, connector=root / "connector", socket=meeting)
    for path in (images, *worker.home.rglob("*")):
        os.chown(path, WORKER, GROUP)
    return Site(root, worker, connector, home)


def test_a_federation_runs_where_neither_part_can_reach_what_it_must_not(site: Site) -> None:
    # The site starts first: there is no aggregator yet.
    site.start_worker()
    site.start_connector()
    absent = {"worker": True, "cohort": True, "policy": True, "aggregator": False}
    until(lambda: site.checks() == absent, within_s=40)
    assert site.ask("/livez")[0] == 200
    site.up()
    wait_for_line(site.running["connector"], "supernode ready", timeout_s=60)
    assert set(site.launch(seed=1)["sites"]) == {"st-anna"}
    assert all(site.checks().values())
    metrics = site.ask("/metrics")[1]
    assert "fedstill_ready 1.0" in metrics
    assert 'fedstill_events_total{event="request answered",part="worker"} 3.0' in metrics
    check_users(site)
    check_networks(site)

    # An outage: the site connects again, by itself.
    site.down()
    last = site.connector.contact_path.stat().st_mtime
    time.sleep(2)
    site.up()
    until(lambda: site.connector.contact_path.stat().st_mtime > last + 2, within_s=100)
    assert set(site.launch(seed=2)["sites"]) == {"st-anna"}

    check_logs(site)
    check_destinations(site)


def check_users(site: Site) -> None:
    """Each its own user, without a capability, and neither can read the other's home."""
    (worker,) = site.processes("worker", "site-agent")
    (connector,) = site.processes("connector", "site-agent")
    for pid, user in ((worker, WORKER), (connector, CONNECTOR)):
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        assert set(status["Uid"].split()) == {str(user)}
        assert status["NoNewPrivs"] == "1"
        for name in ("CapEff", "CapPrm", "CapInh", "CapBnd"):
            assert int(status[name], 16) == 0
    for home, user in ((site.worker.home, WORKER), (site.connector.home, CONNECTOR)):
        assert (home.stat().st_uid, stat.S_IMODE(home.stat().st_mode)) == (user, 0o700)
        for path in home.rglob("*"):
            assert path.lstat().st_uid == user, path
    # The cohort is there to be read, by its user, and not by the other.
    index = site.worker.cohort_path / "index.json"
    for user, code in ((WORKER, 0), (CONNECTOR, 1)):
        done = subprocess.run(["cat", index], user=user, group=GROUP, capture_output=True)
        assert (done.returncode, bool(done.stdout)) == (code, code == 0)


def check_networks(site: Site) -> None:
    """The worker has no interface that is up; the connector has loopback and no route."""
    (worker,) = site.processes("worker", "site-agent")
    (connector,) = site.processes("connector", "site-agent")
    own, theirs = Path("/proc/self/ns/net").readlink(), Path(f"/proc/{worker}/ns/net").readlink()
    assert len({own, theirs, Path(f"/proc/{connector}/ns/net").readlink()}) == 3
    for pid, loopback in ((worker, False), (connector, True)):
        assert not Path(f"/proc/{pid}/net/route").read_text().splitlines()[1:]
        interfaces = [
            line.partition(":")[0].strip()
            for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
        ]
        assert set(interfaces) <= {"lo", "tunl0", "sit0", "gre0", "erspan0", "ip6tnl0", "gretap0"}
        code = "import socket; socket.create_connection(('127.0.0.1', 9), 2)"
        tried = subprocess.run(
            ["nsenter", "-t", str(pid), "-n", sys.executable, "-I", "-c", code],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ("Connection refused" if loopback else "Network is unreachable") in tried.stderr


def check_logs(site: Site) -> None:
    """One line an event, of a known name, and no path of this machine."""
    names = {str(event) for event in Event}
    for part in ("worker", "connector"):
        lines = site.running[part].lines()
        assert lines
        for line in lines:
            assert json.loads(line)["event"] in names
            assert str(site.root) not in line


_INET = re.compile(
    r'sin6?_port=htons\((\d+)\).*?(?:inet_addr\(|inet_pton\(AF_INET6, )"([0-9a-f.:]+)"'
)


def destinations(trace: str) -> set[tuple[str, int]]:
    """Where a trace's connect(2) calls went but to Unix sockets; those are ("unix", 0)."""
    found = set()
    for line in trace.splitlines():
        if "connect(" not in line or "resumed>" in line:
            continue
        match = _INET.search(line)
        if match:
            found.add((match[2], int(match[1])))
        else:
            assert "AF_UNIX" in line or "AF_UNSPEC" in line or "AF_NETLINK" in line, line
            found.add(("unix", 0))
    return found


def check_destinations(site: Site) -> None:
    """Of all connects: the aggregator's address, the SuperNode's own API, Unix sockets."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not there: connects were not traced (Debian's package strace)")
    port = site.aggregator.settings.superlink_port
    trace = site.trace.read_text()
    found = destinations(trace)
    own = {int(number) for number in re.findall(r'execve\(.*"--port", "(\d+)"', trace)}
    assert own
    assert {("127.0.0.1", port), ("unix", 0)} <= found
    loopback = {(host, number) for host in ("127.0.0.1", "::1") for number in {port, *own}}
    assert found - {("unix", 0)} <= loopback
    # Positive control: what is planted is seen by the same means.
    planted = site.root / "planted"
    code = "import socket; socket.socket().connect_ex(('192.0.2.7', 443))"
    subprocess.run(
        [
            *("unshare", "-n", "--", sys.executable, SEALED, "--trace", planted, "--"),
            *(sys.executable, "-I", "-c", f"import os; os.fork() or exec({code!r})"),
        ],
        check=True,
        timeout=30,
    )
    assert ("192.0.2.7", 443) in destinations(planted.read_text())
