"""An aggregator and sites on loopback: real processes, but for the sites' workers."""

import json
import os
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aggregator.enrolment import read_enrolment, record_site, write_kit
from aggregator.home import AggregatorHome
from shared.contract import RunContract
from shared.guardian import descendants
from shared.processes import Process, spawn, stop_all, wait_for_line
from site_agent.enrolment import enrol
from site_agent.kit import join
from site_agent.settings import SiteSettings

BINARIES = Path(sys.executable).parent
TOKEN_VARIABLE = "FEDSTILL_TEST_TOKEN"
CONTRACT = """
name = "tiny"
images = 2
student = { depth = 2, width = 4 }
anchor_network = { depth = 2, width = 4 }
probes = { requests = 2, depths = [1, 2], steps = 2, draws = 1 }
anchor = { rounds = 2, local_steps = 1, batch = 1, crop_px = 16, public_steps = 2 }
task = { size_px = 32, angles = 30, bins = 48 }
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], bool], *, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


@dataclass
class Deployment:
    """Processes of one aggregator and its sites, all marked by a token in their environment."""

    root: Path
    token: str
    processes: dict[str, Process] = field(default_factory=dict)

    @property
    def home(self) -> AggregatorHome:
        return AggregatorHome(self.root / "aggregator")

    def aggregator(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [
            str(BINARIES / "aggregator"),
            *map(str, arguments),
            "--home",
            str(self.home.root),
        ]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=self.environment, timeout=150
        )

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, TOKEN_VARIABLE: self.token, "OMP_NUM_THREADS": "1"}

    def start(self, name: str, *command: str | Path) -> Process:
        process = spawn(
            [str(part) for part in command], log=self.root / f"{name}.log", env=self.environment
        )
        self.processes[name] = process
        return process

    def up(self) -> None:
        home = self.home.root
        process = self.start("up", BINARIES / "aggregator", "up", "--home", home)
        wait_for_line(process, "ready on", timeout_s=60)

    def init(self) -> None:
        """Makes the aggregator's home."""
        ports = ("--superlink-port", str(free_port()), "--api-port", str(free_port()))
        made = self.aggregator("init", *ports)
        assert made.returncode == 0, made.stderr

    def enrol(self, name: str) -> dict[str, Any]:
        """A new site that has joined; what `aggregator site add` said of it."""
        made = self._site(name)
        added = self.aggregator("site", "add", made.home / "enrolment.json", "--json")
        told: dict[str, Any] = json.loads(added.stdout)
        join(made, Path(told["kit"]), replace=False)
        return told

    def enrol_before_up(self, name: str, *, port: int | None = None) -> None:
        """Likewise, without a process; it connects to ``port`` in place of the SuperLink's."""
        made = self._site(name)
        enrolment = read_enrolment(made.home / "enrolment.json")
        record_site(self.home, enrolment)
        join(made, write_kit(self.home, enrolment), replace=False)
        if port is not None:
            file = made.home / "site.toml"
            file.write_text(file.read_text().replace(made.aggregator, f"localhost:{port}"))

    def _site(self, name: str) -> SiteSettings:
        images = self.root / "images" / name
        images.mkdir(parents=True)
        address = f"localhost:{self.home.settings.superlink_port}"
        return enrol(home=self.root / name, name=name, aggregator=address, images=images)

    def connect(self, *names: str) -> None:
        """Starts fake workers and the sites' SuperNodes, and waits until all are connected."""
        for name in names:
            self.start_site(name)
        for name in names:
            wait_for_line(self.processes[f"worker-{name}"], "ready", timeout_s=60)
            wait_for_line(self.processes[f"node-{name}"], "supernode ready", timeout_s=60)

    def start_site(self, name: str) -> None:
        """Starts a fake worker and the site's SuperNode."""
        site = self.root / name
        worker = Path(__file__).with_name("fake_worker.py")
        self.start(f"worker-{name}", sys.executable, worker, site / "worker.sock", name)
        self.start(f"node-{name}", *(BINARIES / "site-agent", "connect", "--home", site))

    def site_processes(self, name: str) -> list[int]:
        """All of a site's: its worker's, its connector's, its SuperNode's, their guardians."""
        tops = [self.processes[f"{part}-{name}"].pid for part in ("worker", "node")]
        return [pid for top in tops for pid in (top, *descendants(top))]

    def disconnect(self, name: str) -> None:
        """Ends both."""
        stop_all([self.processes.pop(f"{part}-{name}") for part in ("worker", "node")], grace_s=10)

    def contract(self, *, seed: int) -> tuple[Path, Path]:
        """A contract file and the folder of its run."""
        return self.write_contract(f"contract-{seed}", f"seed = {seed}\n{CONTRACT}")

    def write_contract(self, name: str, text: str) -> tuple[Path, Path]:
        """Likewise, of a contract of the caller's."""
        file = self.root / f"{name}.toml"
        file.write_text(text)
        contract = RunContract.model_validate(tomllib.loads(text))
        return file, self.home.run_folder(contract.digest())

    def launching(self, contract: Path, *arguments: str) -> subprocess.Popen[str]:
        """`aggregator launch` in a process of its own."""
        home = self.home.root
        return subprocess.Popen(
            [BINARIES / "aggregator", "launch", contract, *arguments, "--home", home],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )


def marked(token: str) -> list[int]:
    """Processes whose environment carries the token."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"{TOKEN_VARIABLE}={token}".encode() in environment:
                found.append(int(entry.name))
    return found


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
