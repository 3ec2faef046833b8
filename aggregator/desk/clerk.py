"""What takes seconds, torch or Flower is done by the aggregator's own commands, in processes.

A page does what the command does, with its words where it refuses, and the API stays small.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aggregator.api.errors import ApiError
from aggregator.command_line import EXIT_FAILED, EXIT_REFUSED
from aggregator.home import AggregatorHome

COMMAND = ("-c", "from aggregator.cli import main; main()")
PUBLICATION = ("-m", "aggregator.desk.publication")
PUBLISHED_WITHIN_S = 300.0
MOST_TOLD = 600


class NotDoneError(ApiError):
    """Something that a command would not do, or not in time; says why and what to do."""


def order(home: AggregatorHome, arguments: Sequence[str], *, within_s: float) -> dict[str, Any]:
    """Runs `aggregator` with ``--json`` and gives its object, a refusal's (exit code 4) too.

    Raises ``NotDoneError`` with what the command said: 409 where it failed, 504 where it took
    longer.
    """
    asked = [*COMMAND, *arguments, "--home", str(home.root), "--json"]
    done = _run(asked, name=f"aggregator {arguments[0]}", within_s=within_s)
    if done.returncode in (0, EXIT_REFUSED) and (found := _object(done.stdout)) is not None:
        return found
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if not said:
        raise _broken(f"aggregator {arguments[0]}")
    raise refused(home, said[-1].removeprefix("error: "))


def publication(home: AggregatorHome, run: Path, *, step: str, by: str) -> str:
    """Builds or publishes a run as ``by``; what came of it. Raises ``NotDoneError``."""
    asked = [*PUBLICATION, str(home.root), str(run), step, by]
    done = _run(asked, name=f"aggregator release {step}", within_s=PUBLISHED_WITHIN_S)
    found = _object(done.stdout)
    if found is None or done.returncode not in (0, EXIT_FAILED):
        raise _broken(f"aggregator release {step}")
    if "error" in found:
        raise refused(home, str(found["error"]), hint=str(found["hint"]))
    return str(found["told"])


def refused(home: AggregatorHome, text: str, *, hint: str = "") -> NotDoneError:
    """The 409 of something that a command would not do, in its words, without the home's path."""
    told = text.replace(f"{home.root}/", "")[:MOST_TOLD]
    return NotDoneError(409, told, hint or "see the run's page, or `aggregator run show`")


def _run(asked: Sequence[str], *, name: str, within_s: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [sys.executable, "-P", *asked],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NotDoneError(
            504, f"`{name}` took longer than {within_s:.0f} s", "run it on the aggregator"
        ) from None


def _object(output: str) -> dict[str, Any] | None:
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    return None


def _broken(name: str) -> NotDoneError:
    return NotDoneError(500, f"`{name}` failed", "run it on the aggregator: it says more there")
