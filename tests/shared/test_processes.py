"""Supervision, with programs that try to escape it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.guardian import descendants
from shared.processes import (
    ProcessError,
    become_subreaper,
    remains_of,
    spawn,
    stop_all,
    wait_for_line,
)

ESCAPE = """
import os, signal, sys, time
# A tree that escapes: own sessions, double forks, TERM ignored, no environment, stdout kept.
folder = sys.argv[1]
def note(name):
    open(os.path.join(folder, f"{name}-{os.getpid()}"), "w").close()
def forever():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    while True:
        time.sleep(60)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        note("escaped")
        if os.fork() == 0:
            os.setsid()
            note("escaped")
            os.execve("/bin/sh", ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"], {})
        forever()
    os._exit(0)
os.wait()
note("child")
while len(os.listdir(folder)) < 3:
    time.sleep(0.01)
print("tree ready", flush=True)
forever()
"""
LAUNCHER = """
import sys, time
from pathlib import Path
from shared.processes import become_subreaper, spawn, wait_for_line
become_subreaper()
folder, script, depth = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
log = folder.parent / f"level-{depth}.log"
if depth:
    command = [sys.executable, __file__, str(folder), script, str(depth - 1)]
else:
    command = [sys.executable, script, str(folder)]
process = spawn(command, log=log)
wait_for_line(process, "ready", timeout_s=20)
print("ready", flush=True)
time.sleep(600)
"""


def write_scripts(folder: Path) -> tuple[Path, Path, Path]:
    pids = folder / "pids"
    pids.mkdir()
    (folder / "escape.py").write_text(ESCAPE)
    (folder / "launcher.py").write_text(LAUNCHER)
    return pids, folder / "escape.py", folder / "launcher.py"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_ended(pids: list[int], *, within_s: float) -> list[int]:
    deadline = time.monotonic() + within_s
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def noted(folder: Path) -> list[int]:
    return [int(path.name.rpartition("-")[2]) for path in folder.iterdir()]


def test_stop_all_ends_a_tree_that_escaped_by_setsid_and_double_fork(tmp_path: Path) -> None:
    pids, escape, _ = write_scripts(tmp_path)
    process = spawn([sys.executable, str(escape), str(pids)], log=tmp_path / "tree.log")
    wait_for_line(process, "tree ready", timeout_s=20)
    tree = noted(pids)
    assert len(tree) == 3
    assert all(alive(pid) for pid in tree)
    assert len({os.getsid(pid) for pid in (*tree, os.getpid())}) == 4
    began = time.monotonic()
    stop_all([process], grace_s=0.3)
    assert time.monotonic() - began < 5
    assert [pid for pid in tree if alive(pid)] == []
    assert process.poll() == 128 + signal.SIGKILL


def test_a_plain_process_group_kill_would_leave_that_tree_behind(tmp_path: Path) -> None:
    pids, escape, _ = write_scripts(tmp_path)
    process = subprocess.Popen([sys.executable, str(escape), str(pids)], start_new_session=True)
    while len(noted(pids)) < 3:
        time.sleep(0.02)
    tree = noted(pids)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    left = [pid for pid in tree if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert len(left) == 2


@pytest.mark.parametrize("depth", [0, 2])
def test_a_killed_launcher_leaves_nothing_within_ten_seconds(tmp_path: Path, depth: int) -> None:
    pids, escape, launcher = write_scripts(tmp_path)
    repository = Path(__file__).parents[2]
    command = [sys.executable, str(launcher), str(pids), str(escape), str(depth)]
    top = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(repository)},
        start_new_session=True,
    )
    assert top.stdout is not None
    assert top.stdout.readline() == b"ready\n"
    tree = sorted({*descendants(top.pid), *noted(pids)})
    assert len(tree) >= 4 + 2 * depth
    assert all(alive(pid) for pid in tree)
    top.kill()
    top.wait()
    top.stdout.close()
    assert wait_until_ended(tree, within_s=10) == []


def test_a_killed_guardian_takes_its_program_along_and_the_orphans_are_found(
    tmp_path: Path,
) -> None:
    pids, escape, launcher = write_scripts(tmp_path)
    script = """
import os, signal, sys
from pathlib import Path
from shared.processes import become_subreaper, spawn, stop_all, wait_for_line
become_subreaper()
process = spawn([sys.executable, sys.argv[2], sys.argv[1]], log=Path(sys.argv[1] + ".log"))
wait_for_line(process, "tree ready", timeout_s=20)
os.kill(process.pid, signal.SIGKILL)
process.wait()
stop_all([process], grace_s=1)
"""
    launcher.write_text(script)
    subprocess.run(
        [sys.executable, str(launcher), str(pids), str(escape)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
        timeout=30,
    )
    # The shell dropped its environment, and with it the mark: only its own death could end it.
    tree = noted(pids)
    left = wait_until_ended(tree, within_s=1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert len(left) <= 1


def test_a_program_may_end_in_its_own_time_and_is_not_killed(tmp_path: Path) -> None:
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('said goodbye'), sys.exit(7)))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(1)\n"
    )
    process = spawn([sys.executable, "-c", script], log=tmp_path / "polite.log")
    wait_for_line(process, "ready", timeout_s=20)
    stop_all([process], grace_s=5)
    assert process.poll() == 7
    assert process.lines() == ["ready", "said goodbye"]


def test_what_a_program_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    process = spawn(["sh", "-c", "setsid sleep 600 & echo $!; exit 3"], log=tmp_path / "left.log")
    assert process.wait(10) == 3
    assert not alive(int(process.lines()[0]))


def test_several_programs_stop_at_the_same_time(tmp_path: Path) -> None:
    stubborn = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"]
    processes = [spawn(stubborn, log=tmp_path / f"{index}.log") for index in range(3)]
    for process in processes:
        wait_for_line(process, "ready", timeout_s=20)
    began = time.monotonic()
    stop_all(processes, grace_s=0.5)
    assert time.monotonic() - began < 3
    assert all(process.poll() is not None for process in processes)


def test_a_program_that_ends_early_is_an_error_with_its_last_lines(tmp_path: Path) -> None:
    process = spawn(["sh", "-c", "echo no such port; exit 4"], log=tmp_path / "link.log")
    with pytest.raises(ProcessError, match=r"link ended with 4\n.*\n  no such port"):
        wait_for_line(process, "ready", timeout_s=20)


def test_a_command_that_does_not_exist_says_so(tmp_path: Path) -> None:
    process = spawn(["/does/not/exist"], log=tmp_path / "missing.log")
    with pytest.raises(ProcessError, match="/does/not/exist: No such file"):
        wait_for_line(process, "ready", timeout_s=20)


def test_a_program_that_is_never_ready_is_an_error(tmp_path: Path) -> None:
    process = spawn(["sleep", "60"], log=tmp_path / "slow.log")
    with pytest.raises(ProcessError, match="slow was not ready within 0 s"):
        wait_for_line(process, "ready", timeout_s=0.3)
    stop_all([process], grace_s=1)


def test_lines_of_an_earlier_start_do_not_count(tmp_path: Path) -> None:
    log = tmp_path / "again.log"
    assert spawn(["echo", "ready"], log=log).wait(10) == 0
    process = spawn(["echo", "starting"], log=log)
    with pytest.raises(ProcessError, match="ended with 0"):
        wait_for_line(process, "ready", timeout_s=20)
    assert process.lines() == ["starting"]
    assert log.stat().st_mode & 0o777 == 0o600


def test_the_environment_is_added_to(tmp_path: Path) -> None:
    process = spawn(
        ["sh", "-c", 'echo "$GREETING:$PATH"'], log=tmp_path / "env.log", env={"GREETING": "hello"}
    )
    process.wait(10)
    assert process.lines() == [f"hello:{os.environ['PATH']}"]


def test_a_child_of_the_caller_is_left_alone(tmp_path: Path) -> None:
    become_subreaper()
    mine = subprocess.Popen(["sleep", "60"], start_new_session=True)
    process = spawn(["sleep", "60"], log=tmp_path / "sleep.log")
    stop_all([process], grace_s=2)
    assert mine.poll() is None
    mine.kill()
    mine.wait()


def test_what_a_dead_supervisor_left_is_found(tmp_path: Path) -> None:
    pids, escape, launcher = write_scripts(tmp_path)
    command = [sys.executable, str(launcher), str(pids), str(escape), "0"]
    repository = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    top = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    with top:
        assert top.stdout is not None
        assert top.stdout.readline() == b"ready\n"
        top.kill()
    # Guardian, program and one that escaped; the shell without an environment has no mark.
    assert len(remains_of(top.pid)) >= 3
    deadline = time.monotonic() + 10
    while remains_of(top.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert remains_of(top.pid) == []


def test_a_process_may_ask_to_end_with_its_parent(tmp_path: Path) -> None:
    child = (
        "import time; from shared.processes import die_with_parent; die_with_parent();"
        "print('asked', flush=True); time.sleep(60)"
    )
    script = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]]);"
        "print(p.pid, flush=True); p.wait()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, child],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        text=True,
    ) as parent:
        assert parent.stdout is not None
        lines = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
        (pid,) = (int(line) for line in lines - {"asked"})
        assert alive(pid)
        parent.kill()
    assert wait_until_ended([pid], within_s=5) == []


def test_what_was_frozen_goes_on(tmp_path: Path) -> None:
    forever = "import time\nfor n in range(1000): print(n, flush=True); time.sleep(.05)"
    process = spawn([sys.executable, "-c", forever], log=tmp_path / "counts.log")
    try:
        wait_for_line(process, "1", timeout_s=20)
        tree = [process.pid, *descendants(process.pid)]
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in tree:
                os.kill(pid, number)
            time.sleep(0.6)
        written = len(process.lines())
        time.sleep(0.6)
        assert process.poll() is None
        assert len(process.lines()) > written
    finally:
        stop_all([process], grace_s=2)
