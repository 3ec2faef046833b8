"""``site-agent up``: worker and link as two processes, started again when they fail."""

import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

from shared.log_lines import LogFormat
from shared.processes import Process, ProcessError, become_subreaper, spawn, stop_all
from shared.processes import wait_for_line as await_line
from site_agent.events import Event, note
from site_agent.settings import SiteSettings

NEEDS_A_FIX = 2
"""Exit code of a part that would fail again: it is not started again."""
READY_WITHIN_S = 120.0
GRACE_S = 10.0
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
STEADY_AFTER_S = 60.0
_POLL_S = 0.5


class SupervisionError(RuntimeError):
    """A part of the site cannot run; the text ends with its last lines."""


@dataclass
class _Part:
    command: str
    process: Process
    started: float
    pause_s: float = FIRST_PAUSE_S
    restart_at: float | None = None


def keep_up(settings: SiteSettings, *, form: LogFormat, say: Callable[[str], None]) -> None:
    """Runs ``worker`` and ``connect`` until SIGTERM or SIGINT; leaves no process behind.

    What they say first, in format ``form``, is repeated; all of it is in ``logs/``.

    Raises ``SupervisionError`` where one of them needs a fix.
    """
    stopped = False

    def ask_to_stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    become_subreaper()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_to_stop)
    parts: list[_Part] = []
    try:
        parts.append(_start("worker", settings, form))
        _await_worker(parts[0], lambda: stopped)
        if not stopped:
            say(parts[0].process.lines()[-1])
            parts.append(_start("connect", settings, form))
        connected = False
        while not stopped:
            if not connected:
                ready = [line for line in parts[1].process.lines() if "supernode ready" in line]
                connected = bool(ready)
                for line in ready[:1]:
                    say(line)
            for part in parts:
                _revive(part, settings, form)
            time.sleep(_POLL_S)
    finally:
        stop_all([part.process for part in reversed(parts)], grace_s=GRACE_S)


def _start(command: str, settings: SiteSettings, form: LogFormat) -> _Part:
    process = spawn(
        [
            *(sys.executable, "-P", "-m", "site_agent.cli", command),
            *("--home", str(settings.home), "--log-format", form.value),
        ],
        log=settings.logs_path / f"{command}.out",
    )
    return _Part(command=command, process=process, started=time.monotonic())


def _await_worker(part: _Part, is_stopped: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while not is_stopped():
        try:
            await_line(part.process, "worker ready", timeout_s=_POLL_S)
        except ProcessError as error:
            if part.process.poll() is not None or time.monotonic() > deadline:
                raise SupervisionError(str(error)) from None
            continue
        return


def _revive(part: _Part, settings: SiteSettings, form: LogFormat) -> None:
    code = part.process.poll()
    if code is None:
        return
    now = time.monotonic()
    if code == NEEDS_A_FIX:
        last = "".join(f"\n  {line}" for line in part.process.lines()[-6:])
        raise SupervisionError(f"{part.command} cannot run:{last}")
    if part.restart_at is None:
        if now - part.started > STEADY_AFTER_S:
            part.pause_s = FIRST_PAUSE_S
        part.restart_at = now + part.pause_s
        note(Event.PART_ENDED, part=part.command, code=code, again_s=part.pause_s)
    elif now >= part.restart_at:
        fresh = _start(part.command, settings, form)
        part.process, part.started, part.restart_at = fresh.process, fresh.started, None
        part.pause_s = min(2 * part.pause_s, LONGEST_PAUSE_S)
