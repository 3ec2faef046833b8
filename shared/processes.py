"""Supervision: programs that are started together and leave nothing behind.

Every program runs under a guardian of its own (``shared/guardian.py``) that holds on to all its
descendants, also those with a session of their own. One that is stopped calls ``stop_all``; of one
that was killed the guardians notice the death and end everything below them within seconds.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGINT, SIGTERM

from shared.guardian import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_PDEATHSIG,
    descendants,
    parents,
    prctl,
    signal_all,
)

GUARDIAN = Path(__file__).with_name("guardian.py")
LAST_LINES = 12
"""Lines of a log that an error repeats."""
MARK = "FEDSTILL_SUPERVISORS"
"""Environment variable that names the supervisors above a program, nearest last."""
_guardians: set[int] = set()


class ProcessError(RuntimeError):
    """A program that did not start, or ended before its time; the text ends with its last lines."""


@dataclass(frozen=True)
class Process:
    """A program under its guardian, and the log that both write."""

    name: str
    log: Path
    log_start: int
    """Where this program's lines begin in the log, bytes."""
    guardian: subprocess.Popen[bytes] = field(repr=False)

    @property
    def pid(self) -> int:
        """The guardian's process id: everything the program starts is below it."""
        return self.guardian.pid

    def poll(self) -> int | None:
        """The exit code (128 + N where signal N ended it), or None while it runs."""
        return self.guardian.poll()

    def wait(self, timeout_s: float | None = None) -> int:
        """Waits for the end and gives the exit code; raises ``TimeoutError``."""
        try:
            return self.guardian.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.name} still runs after {timeout_s} s") from None

    def lines(self) -> list[str]:
        """What the program has written so far."""
        with self.log.open("rb") as log:
            log.seek(self.log_start)
            return log.read().decode("utf-8", "replace").splitlines()


def become_subreaper() -> None:
    """Makes orphaned descendants children of this process, so that ``stop_all`` finds them."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Asks the kernel for a SIGTERM when the parent of this process ends. Call it early."""
    parent = os.getppid()
    prctl(PR_SET_PDEATHSIG, SIGTERM)
    if os.getppid() != parent:  # it ended before prctl took effect
        os.kill(os.getpid(), SIGTERM)


def spawn(
    command: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Process:
    """Starts ``command`` in a session of its own, its output appended to ``log`` (mode 0600).

    ``env`` is added to this process's environment. The program is named after the log. A command
    that does not exist ends with 127 and says so in the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{os.environ.get(MARK, '')}:{os.getpid()}:"
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "wb") as output:
        log_start = os.fstat(output.fileno()).st_size
        guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", str(GUARDIAN), str(os.getpid()), "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {}), MARK: mark},
            cwd=cwd,
            start_new_session=True,
        )
    _guardians.add(guardian.pid)
    return Process(name=log.stem, log=log, log_start=log_start, guardian=guardian)


def wait_for_line(process: Process, text: str, *, timeout_s: float) -> None:
    """Returns once the program has written a line that holds ``text``.

    Raises ``ProcessError`` with the log's last lines where it ends before, or takes too long.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        code = process.poll()  # before the log is read: what it wrote last is not missed
        lines = process.lines()
        if any(text in line for line in lines):
            return
        if code is not None:
            raise ProcessError(f"{process.name} ended with {code}{_tail(process, lines)}")
        if time.monotonic() >= deadline:
            raise ProcessError(
                f"{process.name} was not ready within {timeout_s:.0f} s{_tail(process, lines)}"
            )
        time.sleep(0.1)


def _tail(process: Process, lines: Sequence[str]) -> str:
    return "".join(f"\n  {line}" for line in [f"({process.log})", *lines[-LAST_LINES:]])


def stop_all(processes: Sequence[Process], *, grace_s: float) -> None:
    """Ends the programs and everything below them: TERM to all at once, ``grace_s``, then KILL.

    Returns when nothing is left, orphans that a killed guardian left to a subreaper included.
    Ctrl-C is not heeded meanwhile: this is what it asks for.
    """
    with _deaf():
        running = [process for process in processes if process.poll() is None]
        signal_all([process.pid for process in running], SIGTERM)
        if _all_ended(running, within_s=grace_s):
            _kill_orphans()
            return
        late = [process.pid for process in running if process.poll() is None]
        signal_all(late, SIGTERM)  # the second one: the guardian kills
        if not _all_ended(running, within_s=3.0):
            for process in running:
                if process.poll() is None:
                    signal_all([*descendants(process.pid), process.pid], signal.SIGKILL)
                    process.wait()
        _kill_orphans()


def _all_ended(processes: Sequence[Process], *, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while any(process.poll() is None for process in processes):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def _kill_orphans() -> None:
    """KILL for children this process adopted: it never started them, but they carry its mark."""
    while True:
        family = parents()
        orphans = [
            pid
            for pid in remains_of(os.getpid())
            if family.get(pid) == os.getpid() and pid not in _guardians
        ]
        if not orphans:
            return
        signal_all(orphans, signal.SIGKILL)
        for pid in orphans:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def remains_of(supervisor: int) -> list[int]:
    """What still runs of the programs that a supervisor started, also if it is gone itself."""
    mark = f":{supervisor}:".encode()
    return [pid for pid in parents() if mark in _supervisors(pid)]


def _supervisors(pid: int) -> bytes:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # ended meanwhile
        return b""
    return next((line for line in environment if line.startswith(MARK.encode() + b"=")), b"")


@contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait; only the main thread may say so, elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (SIGINT, SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
