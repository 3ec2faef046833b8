import os
import stat
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from site_agent.apart import set_apart
from site_agent.enrolment import enrol
from site_agent.preflight import checks
from site_agent.service import ServiceError, _listener, _refuse_open_folder
from site_agent.settings import SettingsError, read_settings

WORKER, CONNECTOR, STRANGER, GROUP = 20001, 20002, 20003, 20000


@pytest.fixture
def settings(tmp_path):
    return enrol(home=tmp_path / "home", name="a", aggregator="localhost:1", images=tmp_path)


def test_each_has_its_own_part_and_what_was_handed_over_stays_the_same(settings, tmp_path):
    handed = (settings.home / "enrolment.json").read_bytes()
    key = settings.key_path.read_bytes()
    meeting = tmp_path / "run" / "worker.sock"
    made = set_apart(settings, connector=tmp_path / "connector", socket=meeting)
    assert made.key_path.read_bytes() == key
    assert stat.S_IMODE(made.key_path.stat().st_mode) == 0o600
    assert (made.home / "enrolment.json").read_bytes() == handed
    # Neither can sign or read in the other's name.
    assert not settings.key_path.exists()
    assert not made.signing_key_path.exists() and not made.pseudonym_key_path.exists()
    assert not (made.home / "policy.toml").exists()
    for home, policy in ((settings.home, True), (made.home, False)):
        there = read_settings(home, policy=policy)
        assert there.socket_path == meeting and there.is_apart
    again = set_apart(read_settings(settings.home), connector=made.home, socket=meeting)
    assert again == made and made.key_path.read_bytes() == key


def test_the_preflight_of_a_part_looks_at_its_own_keys(settings, tmp_path):
    made = set_apart(settings, connector=tmp_path / "connector", socket=tmp_path / "run" / "w")
    for home, part in ((settings.home, "worker"), (made.home, "connector")):
        found = {check.name: check for check in checks(home, part=part)}
        assert found["keys"].run().verdict == "good", found["keys"].run()
        assert ("policy" in found, "kit" in found) == (part == "worker", part == "connector")


@pytest.mark.parametrize(("connector", "meeting"), [("home/in", "run/w"), ("c", "home/w")])
def test_homes_lie_apart(settings, tmp_path, connector, meeting):
    with pytest.raises(SettingsError, match="--"):
        set_apart(settings, connector=tmp_path / connector, socket=tmp_path / meeting)


def test_the_sockets_folder_is_nobody_elses(tmp_path):
    with pytest.raises(ServiceError, match="mode 750"):
        _refuse_open_folder(tmp_path / "missing")
    tmp_path.chmod(0o755)
    with pytest.raises(ServiceError, match="chmod 750"):
        _refuse_open_folder(tmp_path)
    tmp_path.chmod(0o750)
    _refuse_open_folder(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become other users")
def test_the_group_reaches_the_socket_and_strangers_do_not(tmp_path):
    with open_to_all(tmp_path):
        folder = tmp_path / "run"
        folder.mkdir()
        os.chown(folder, WORKER, GROUP)
        folder.chmod(0o750)
        connect = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        with as_worker(folder / "worker.sock"):
            seen = (folder / "worker.sock").stat()
            assert (seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)) == (WORKER, GROUP, 0o660)
            codes = []
            for user, group in ((CONNECTOR, GROUP), (STRANGER, STRANGER)):
                done = subprocess.run(
                    ["/usr/bin/env", "python3", "-c", connect, folder / "worker.sock"],
                    user=user,
                    group=user,
                    extra_groups=[group],
                    env={"PATH": "/usr/bin"},
                    capture_output=True,
                    check=False,
                )
                codes.append((done.returncode, b"PermissionError" in done.stderr))
        assert codes == [(0, False), (1, True)]


@contextmanager
def open_to_all(folder):
    """Lets other users go through pytest's private folders meanwhile."""
    closed = {
        path: stat.S_IMODE(path.stat().st_mode)
        for path in (folder, *folder.parents)
        if not path.stat().st_mode & 0o001
    }
    for path, mode in closed.items():
        path.chmod(mode | 0o011)
    try:
        yield
    finally:
        for path, mode in closed.items():
            path.chmod(mode)


@contextmanager
def as_worker(path: Path):
    """The worker's own listener, made by its user in a fork."""
    ready, made = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresgid(GROUP, GROUP, GROUP)
        os.setresuid(WORKER, WORKER, WORKER)
        with _listener(path, shared=True):
            os.write(made, b".")
            time.sleep(30)
        os._exit(0)
    os.close(made)
    try:
        assert os.read(ready, 1)
        yield
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(ready)
