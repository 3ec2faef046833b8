"""Programs of the aggregator, killed at random moments of a run under `aggregator up`.

``kills`` publishes a run that nobody disturbs, hospitals' judgement and veto included; then it
begins the same run from nothing, as often as it takes, and kills one program after the other in it.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx

from aggregator.lifecycle import read_state
from aggregator.runs import read_events
from shared.guardian import descendants
from tests.e2e.deployment import CONTRACT, Deployment, command_line, until

Program = Literal["serverapp", "superlink", "executor", "api"]
PROGRAMS: dict[Program, str] = {
    "serverapp": "flwr-serverapp",
    "superlink": "flower-superlink",
    "executor": "aggregator.executor 127.0.0.1:",
    "api": "aggregator.services",
}
"""What stands in their command lines."""
SITES = ("st-anna", "st-bruno")
GOES_ON_WITHIN_S = 120.0
JUDGED = f"""{CONTRACT.replace("tiny", "judged")}
[evaluation]
sites = true
veto = true
steps = 100
"""


@dataclass(frozen=True)
class Kill:
    """A SIGKILL and what came after."""

    program: Program
    during: str
    """What the run did: its phase and round."""
    goes_on_s: float
    """Until a new ServerApp tells of the run, or the API answers."""


@contextmanager
def aggregator(deployment: Deployment) -> Iterator[Deployment]:
    """An aggregator with two sites, connected."""
    deployment.init()
    for name in SITES:
        deployment.enrol_before_up(name)
    deployment.up()
    deployment.connect(*SITES)
    yield deployment


def kills(
    deployment: Deployment,
    programs: Sequence[Program],
    *,
    seed: int,
    within: float = 1.0,
    say: Callable[[str], None] = print,
) -> list[Kill]:
    """Kills the programs, in this order; raises where a run does not end as the first one did.

    ``within`` which share of a run's duration after it began, or went on, the moment is drawn.
    """
    chance, left, done = random.Random(seed), list(programs), list[Kill]()
    waiting = ThreadPoolExecutor(1)
    api: Future[Kill] | None = None
    contract, run = deployment.write_contract("judged", JUDGED)
    begun = time.monotonic()
    undisturbed = _ended(run, *_launched(deployment, contract))
    lasts_s = _worked_s(run)
    say(f"undisturbed: {time.monotonic() - begun:.0f} s, of which {lasts_s:.0f} s in a ServerApp")
    number = 0
    while left:
        number += 1
        run.rename(run.with_name(f"{run.name}-{number}"))
        with deployment.launching(contract, "--json") as launcher:
            until(lambda: is_running(run) or launcher.poll() is not None, within_s=60)
            while left:
                moment = time.monotonic() + chance.uniform(0, within * lasts_s)
                until(lambda at=moment: time.monotonic() >= at, within_s=60)  # type: ignore[misc]
                if launcher.poll() is not None or not is_running(run):
                    break  # it was quicker
                if api is not None and left[0] == "api":
                    done.append(api.result())
                goes_on = _kill(deployment, run, program := left.pop(0))
                if program == "api":  # nothing of a run waits for it
                    api = waiting.submit(goes_on)
                    continue
                done.append(goes_on())
                say(f"{done[-1].program} killed in {done[-1].during}: {done[-1].goes_on_s:.1f} s")
            said, told = launcher.communicate(timeout=200)
        assert launcher.returncode == 0, told
        again = _ended(run, said, told)
        assert again == undisturbed, f"another end: {again} in place of {undisturbed}"
        assert not (run / "error.log").exists()
    return [*done, api.result()] if api is not None else done


def is_running(run: Path) -> bool:
    return (run / "state.json").exists() and read_state(run).state == "running"


def _launched(deployment: Deployment, contract: Path) -> tuple[str, str]:
    ended = deployment.aggregator("launch", contract, "--json")
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, ended.stderr


def _ended(run: Path, said: str, _told: str) -> dict[str, Any]:
    """All that must not depend on what was killed."""
    release = json.loads(said)
    utility = json.loads((run / "utility.json").read_text())
    judged = json.loads((run / "evaluation.json").read_text())
    sites = json.loads((run / "result.json").read_text())["sites"]
    assert read_state(run).state == "published"
    return {
        "release": {name: release[name] for name in ("name", "version", "digest")},
        "utility": utility["rows"],
        "judged": {name: judged[name] for name in ("figures", "verdicts", "pairs_sha256")},
        "releases": {name: one["releases"] for name, one in sites.items()},
    }


def _worked_s(run: Path) -> float:
    events, _ = read_events(run, from_byte=0)
    return float(str(events[-1]["time"])) - float(str(events[0]["time"]))


def processes_of(deployment: Deployment, program: Program) -> set[int]:
    """The program's own processes, not their guardians."""
    below = descendants(deployment.processes["up"].pid)
    lines = {pid: command_line(pid) for pid in below}
    return {
        pid
        for pid, line in lines.items()
        if PROGRAMS[program] in line and "guardian.py" not in line
    }


def _kill(deployment: Deployment, run: Path, program: Program) -> Callable[[], Kill]:
    """Kills it; what is given back waits until it goes on."""
    before = processes_of(deployment, "serverapp")
    events, byte = read_events(run, from_byte=0)
    last = events[-1] if events else {}
    killed = processes_of(deployment, program)
    assert killed, f"no {program} runs"
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    at = time.monotonic()

    def is_back() -> bool:
        nonlocal byte
        if program == "api":
            return _answers(deployment)
        news, byte = read_events(run, from_byte=byte)
        working = [one for one in news if one["phase"] != "paused"]
        fresh = processes_of(deployment, "serverapp") - before
        return bool(working and fresh) or read_state(run).state in ("finished", "published")

    def goes_on() -> Kill:
        until(is_back, within_s=GOES_ON_WITHIN_S)
        return Kill(
            program=program,
            during=f"{last.get('phase', 'the beginning')} {last.get('round', '')}".strip(),
            goes_on_s=round(time.monotonic() - at, 1),
        )

    return goes_on


def _answers(deployment: Deployment) -> bool:
    try:
        answer = httpx.get(f"{deployment.home.api_url}/readyz", timeout=5, trust_env=False)
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK
