"""The real commands, as a coordinator, three hospitals and a researcher would type them."""

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.processes import Process, ProcessError, spawn, stop_all, wait_for_line

READY_WITHIN_S = 90.0
LAST_LINES = 15
ONE_THREAD = {"OMP_NUM_THREADS": "1", "FEDSTILL_THREADS": "1"}
"""For the hospitals: three compute at once, and threads would only wait for each other."""


class DemoError(RuntimeError):
    """A step of the demo that did not work; the text ends with the program's last lines."""


@dataclass
class Federation:
    """One aggregator and its sites below ``folder``; stops all of it in the end."""

    folder: Path
    running: list[Process] = field(default_factory=list)

    @property
    def aggregator(self) -> Path:
        """The aggregator's home."""
        return self.folder / "aggregator"

    def site(self, name: str) -> Path:
        """A site's home."""
        return self.folder / "sites" / name

    def start(self, command: Sequence[str], *, name: str) -> Process:
        """Starts a command of ours; ``stop`` ends it."""
        threads = ONE_THREAD if command[0] == "site-agent" else {}
        environment = {**threads, "FEDSTILL_CONFIG": str(self.folder / "researcher")}
        process = spawn(program(command), log=self.folder / "logs" / f"{name}.log", env=environment)
        self.running.append(process)
        return process

    def run(self, commands: Mapping[str, Sequence[str]], *, on_line: Callable[[str], None]) -> None:
        """Runs commands, named, side by side until all have ended well.

        Each new line that they write goes to ``on_line``. Raises ``DemoError`` at the first that
        fails.
        """
        processes = [self.start(command, name=name) for name, command in commands.items()]
        told = dict.fromkeys(commands, 0)
        ended = False
        while not ended:
            ended = all(process.poll() is not None for process in processes)
            for process in processes:
                lines = process.lines()
                for line in filter(str.strip, lines[told[process.name] :]):
                    on_line(line)
                told[process.name] = len(lines)
                if process.poll():
                    command = " ".join(commands[process.name])
                    last = "".join(f"\n  {line}" for line in lines[-LAST_LINES:])
                    raise DemoError(f"`{command}` ended with {process.poll()}{last}")
            time.sleep(0.2)
        self.running = [process for process in self.running if process not in processes]

    def ask(self, command: Sequence[str], *, name: str) -> dict[str, Any]:
        """Runs a command with ``--json`` and gives its object."""
        lines: list[str] = []
        self.run({name: [*command, "--json"]}, on_line=lines.append)
        for line in reversed(lines):
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise DemoError(f"`{' '.join(command)} --json` printed no JSON")

    def await_line(self, process: Process, text: str) -> None:
        """Waits until a started program says so; raises ``DemoError``."""
        try:
            wait_for_line(process, text, timeout_s=READY_WITHIN_S)
        except ProcessError as error:
            raise DemoError(str(error)) from None

    def stop(self, names: Collection[str] | None = None) -> None:
        """Ends what runs, or the ``names`` of it, within the ten seconds that are promised."""
        leaving = [one for one in self.running if names is None or one.name in names]
        stop_all(leaving, grace_s=5.0)
        self.running = [one for one in self.running if one not in leaving]


def program(command: Sequence[str]) -> list[str]:
    """A command of ours as installed beside this interpreter; ``python`` is this interpreter."""
    name, *arguments = command
    if name == "python":
        return [sys.executable, *arguments]
    installed = Path(sys.executable).with_name(name)
    found = str(installed) if installed.exists() else shutil.which(name)
    if found is None:
        raise DemoError(f"{name} is not installed here: pip install -e '.[site,aggregator]'")
    return [found, *arguments]


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing listens on, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def enrol(federation: Federation, sites: Mapping[str, Path]) -> str:
    """Keys, certificates and settings of everyone; enrolments to the aggregator, kits to the sites.

    Gives the URL of the release API.
    """
    superlink, api = free_ports(2)
    home = ["--home", str(federation.aggregator)]
    init = ["aggregator", "init", *home, "--public-name", "localhost"]
    ports = ["--superlink-port", str(superlink), "--api-port", str(api)]
    commands = {"aggregator-init": [*init, *ports]}
    for name, images in sites.items():
        settings = ["--name", name, "--aggregator", f"localhost:{superlink}"]
        place = ["--home", str(federation.site(name)), "--images", str(images)]
        commands[f"{name}-init"] = ["site-agent", "init", *settings, *place]
    federation.run(commands, on_line=_ignore)
    # What the people would send each other: enrolment.json one way, the kit the other.
    add, joins = {}, {}
    for name in sites:
        site = federation.site(name)
        kit = federation.aggregator / "kits" / f"{name}.kit.json"
        enrolment = str(site / "enrolment.json")
        add[f"{name}-add"] = ["aggregator", "site", "add", enrolment, *home]
        joins[f"{name}-join"] = ["site-agent", "join", str(kit), "--home", str(site)]
    federation.run(add, on_line=_ignore)
    federation.run(joins, on_line=_ignore)
    return f"http://127.0.0.1:{api}"


def index(federation: Federation, sites: Sequence[str], *, on_line: Callable[[str], None]) -> None:
    """Reads each hospital's images into its cohort."""
    homes = {name: ["--home", str(federation.site(name))] for name in sites}
    federation.run(
        {f"{name}-index": ["site-agent", "index", *home] for name, home in homes.items()},
        on_line=on_line,
    )


def start(federation: Federation, sites: Sequence[str], *, on_ready: Callable[[str], None]) -> None:
    """Brings everyone up: SuperLink and API, then a worker and a SuperNode at each site."""
    home = ["--home", str(federation.aggregator)]
    # All at once: by the time a worker has loaded and its site connects, the SuperLink listens.
    aggregator = federation.start(["aggregator", "up", *home], name="aggregator")
    agents = {
        name: federation.start(
            ["site-agent", "up", "--home", str(federation.site(name))], name=name
        )
        for name in sites
    }
    federation.await_line(aggregator, "SuperLink ready")
    on_ready("the aggregator is up")
    for name, agent in agents.items():
        federation.await_line(agent, "supernode ready")
        on_ready(f"{name} is connected")


def distil(
    federation: Federation, contract: Path, public: Path | None, *, on_line: Callable[[str], None]
) -> Path:
    """Distils with the sites; gives the run's folder. Nothing is published yet."""
    command = ["aggregator", "launch", str(contract), "--home", str(federation.aggregator)]
    command += ["--no-publish", *(["--public", str(public)] if public is not None else [])]
    federation.run({"launch": command}, on_line=on_line)
    # The same launch again finds the run finished, and tells of it in JSON.
    return Path(federation.ask(command, name="launched")["run"])


def publish(federation: Federation, contract: Path, public: Path | None) -> dict[str, Any]:
    """Publishes the finished run; gives the release's name, version, digest and url.

    Raises ``DemoError`` where the gate refuses it.
    """
    command = ["aggregator", "launch", str(contract), "--home", str(federation.aggregator)]
    command += ["--public", str(public)] if public is not None else []
    return federation.ask(command, name="publish")


def fetch(federation: Federation, release: Mapping[str, Any], *, url: str) -> Path:
    """Downloads and verifies the release as a researcher would, over HTTP; gives its folder."""
    folder = federation.folder / "release"
    name = f"{release['name']}@v{release['version']}"
    get = ["distilled", "get", name, "--from", url, "--to", str(folder)]
    federation.run({"get": get}, on_line=_ignore)
    federation.run({"verify": ["distilled", "verify", str(folder)]}, on_line=_ignore)
    return folder


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def _ignore(_line: str) -> None:
    pass
