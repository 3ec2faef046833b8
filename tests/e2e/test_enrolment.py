"""Enrolment as the docs tell it: their commands, copied, in two folders of two parties."""

import json
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from shared.processes import Process, become_subreaper, spawn, stop_all, wait_for_line

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

DOCS = Path(__file__).parents[2] / "docs"
TOKEN_VARIABLE = "FEDSTILL_TEST_TOKEN"


def commands(page: str, heading: str) -> list[str]:
    """The lines of the code blocks of a section, without their comments."""
    text = (DOCS / page).read_text("utf-8")
    section = re.split(r"^#+ ", text.partition(heading)[2], maxsplit=1, flags=re.MULTILINE)[0]
    blocks = re.findall(r"^ *```\n(.*?)^ *```$", section, re.MULTILINE | re.DOTALL)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def named(lines: list[str], command: str) -> str:
    """The one line that begins with ``command``."""
    (line,) = [line for line in lines if line.startswith(command)]
    return line


@dataclass
class Party:
    """Somebody with a shell in a folder of their own, who copies commands."""

    folder: Path
    adapt: Callable[[str], str]
    """Puts the names and paths of this machine in place of those in the docs."""
    environment: dict[str, str]
    running: list[Process] = field(default_factory=list)

    def words(self, line: str) -> list[str]:
        program, *arguments = shlex.split(self.adapt(line))
        return [str(Path(sys.executable).with_name(program)), *arguments]

    def type(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(line),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=150,
        )

    def start(self, line: str, *, ready: str) -> None:
        log = self.folder.with_name(f"{self.folder.name}.log")
        process = spawn(self.words(line), log=log, env=self.environment, cwd=self.folder)
        self.running.append(process)
        wait_for_line(process, ready, timeout_s=120)


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def write_patients(folder: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(5):
        (folder / f"p{number}").mkdir(parents=True)
        voxels = random.integers(-1000, 500, size=(2, 32, 32), dtype=np.int16)
        volume = SimpleITK.GetImageFromArray(voxels)
        volume.SetSpacing((9.0, 9.0, 3.0))
        SimpleITK.WriteImage(volume, str(folder / f"p{number}" / "ct.nii.gz"))


@pytest.fixture
def parties(tmp_path: Path) -> Iterator[tuple[Party, Party]]:
    """The coordinator and the hospital."""
    become_subreaper()
    superlink, api = free_ports(2)
    images = tmp_path / "images"
    write_patients(images)

    def adapt(line: str) -> str:
        for there, here in (
            ("aggregator.example.org:443", f"localhost:{superlink}"),
            ("--public-port 443", f"--superlink-port {superlink} --api-port {api}"),
            ("aggregator.example.org", "localhost"),
            ("/srv/ct", str(images)),
        ):
            line = line.replace(there, here)
        return line

    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("FEDSTILL_")
    }
    environment |= {"OMP_NUM_THREADS": "1", TOKEN_VARIABLE: secrets.token_hex(8), "COLUMNS": "300"}
    made = []
    for name in ("coordinator", "hospital"):
        (tmp_path / name).mkdir()
        made.append(Party(tmp_path / name, adapt, environment))
    try:
        yield made[0], made[1]
    finally:
        stop_all([process for party in reversed(made) for process in party.running], grace_s=10)


def test_a_hospital_enrols_from_the_docs_alone_and_its_preflight_is_green(
    parties: tuple[Party, Party],
) -> None:
    coordinator, hospital = parties
    theirs = commands("coordinator.md", "# For the coordinator: launching a run and publishing")
    ours = commands("hospital.md", "## Three steps to take part")
    preflight = named(ours, "site-agent preflight")

    assert coordinator.type(named(theirs, "aggregator init")).returncode == 0
    coordinator.start(named(theirs, "aggregator up"), ready="SuperLink ready")
    made = hospital.type(named(ours, "site-agent init"))
    assert made.returncode == 0, made.stderr
    early = hospital.type(preflight)
    assert early.returncode == 4, early.stdout
    assert "`site-agent join`" in early.stdout

    # One file each way, by whatever way the two trust.
    shutil.copy(hospital.folder / "site" / "enrolment.json", coordinator.folder)
    added = coordinator.type(named(theirs, "aggregator site add"))
    assert added.returncode == 0, added.stderr
    kit = added.stdout.splitlines()[-1].partition(": ")[2]
    assert Path(kit).name == "hospital-a.kit.json"
    shutil.copy(kit, hospital.folder)

    for command in ("site-agent join", "site-agent index"):
        done = hospital.type(named(ours, command))
        assert done.returncode == 0, f"{command}: {done.stderr}"
    green = hospital.type(f"{preflight} --json")
    assert green.returncode == 0, green.stdout
    verdicts = {one["check"]: one["verdict"] for one in json.loads(green.stdout)["checks"]}
    assert set(verdicts.values()) <= {"good", "warning"}
    assert len(verdicts) == 17
    for check in ("keys", "kit", "DNS", "TLS", "clock", "fleet API", "patients", "gradient"):
        assert verdicts[check] == "good", check

    hospital.start(named(ours, "site-agent up"), ready="supernode ready")
    (listed,) = json.loads(coordinator.type("aggregator site list --json").stdout)["sites"]
    assert (listed["name"], listed["state"]) == ("hospital-a", "online")
    assert coordinator.type(named(theirs, "aggregator site revoke")).returncode == 0
    (listed,) = json.loads(coordinator.type("aggregator site list --json").stdout)["sites"]
    assert listed["state"] == "revoked"
