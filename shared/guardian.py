"""The guardian: a small process between a supervisor and each program it starts.

Started by its path (``python -I -S guardian.py SUPERVISOR_PID -- COMMAND ...``); it imports only
the standard library, so that it starts in milliseconds and stays under 10 MiB. Its algorithm:

1. become the subreaper, so that whatever the command starts stays a descendant of the guardian,
   also after ``setsid`` and a double fork;
2. start the command in a session of its own, to be killed by the kernel should the guardian be;
3. pass on the first SIGTERM, and take the supervisor's death for one; a second one, or a few
   seconds after the supervisor's death, means now;
4. when the command ends, end what is left below it: TERM, a moment, KILL until no child is left;
5. exit as the command did (128 + N where signal N ended it).
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
ORPHANED_GRACE_S = 4.0
"""How long the command may take to end by itself after the supervisor died."""
SWEEP_GRACE_S = 1.0
"""How long what the command left behind may take to end by itself."""
POLL_S = 0.25
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WATCHED = (*STOPS, signal.SIGCHLD, signal.SIGALRM)


def prctl(option: int, value: int) -> None:
    """Linux prctl(2) with one argument; raises ``OSError`` where the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def parents() -> dict[int, int]:
    """The parent of every process that /proc shows, zombies included."""
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_bytes()
            except OSError:  # ended meanwhile
                continue
            found[int(entry.name)] = int(stat[stat.rindex(b")") + 2 :].split()[1])
    return found


def descendants(root: int) -> list[int]:
    """Process ids below ``root``, nearest first."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    found = []
    front = [root]
    while front:
        front = [child for pid in front for child in children.get(pid, ())]
        found += front
    return found


def signal_all(pids: list[int], number: int) -> None:
    """Signals each process that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def sweep(*, grace_s: float) -> None:
    """Ends every descendant: TERM, ``grace_s``, then KILL, until no child is left."""
    deadline = time.monotonic() + grace_s
    signal_all(descendants(os.getpid()), signal.SIGTERM if grace_s > 0 else signal.SIGKILL)
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            if time.monotonic() >= deadline:
                signal_all(descendants(os.getpid()), signal.SIGKILL)
            time.sleep(0.02)


def start(command: list[str]) -> int:
    """Forks and executes ``command``; it dies with the guardian."""
    guardian = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guardian:  # it died before prctl took effect
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def reap(child: int) -> int | None:
    """Collects what has ended; the exit code of ``child`` once it has."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == child:
            code = os.waitstatus_to_exitcode(status)


def guard(supervisor: int, command: list[str]) -> int:
    """Runs ``command`` below this process until it ends or the supervisor does; its exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = start(command)
    asked = False
    deadline = float("inf")
    # Not sigtimedwait(), which in CPython gives a signal that never came after a SIGSTOP.
    signal.setitimer(signal.ITIMER_REAL, POLL_S, POLL_S)
    while True:
        received = signal.sigwait(WATCHED)
        code = reap(child)
        if code is not None:
            sweep(grace_s=SWEEP_GRACE_S)
            return code if code >= 0 else 128 - code
        stop = received in STOPS
        if (stop and asked) or time.monotonic() >= deadline:
            sweep(grace_s=0)
            return 128 + signal.SIGKILL
        if os.getppid() != supervisor and deadline == float("inf"):
            deadline = time.monotonic() + ORPHANED_GRACE_S
            stop = True
        if stop:
            asked = True
            signal_all([child], signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(guard(int(sys.argv[1]), sys.argv[3:]))
