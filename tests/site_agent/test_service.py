import hashlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.architectures import Residual
from shared.contract import Anchor, Probes, RunContract
from shared.mandate import sign_contract
from shared.messages import Message, StatusQueryHeader, decode, encode, probe_batch
from shared.tasks.settings import CtDenoise
from shared.trajectory import start
from site_agent.audit import AuditLog
from site_agent.cohort import build_cohort
from site_agent.enrolment import enrol
from site_agent.frames import call
from site_agent.intake.slices import PatientSlices, Slice
from site_agent.policy_file import name_coordinators

TINY = Residual(depth=2, width=4)
STATUS = encode(Message(header=StatusQueryHeader()))


COORDINATOR = Ed25519PrivateKey.from_private_bytes(b"c" * 32)
KEY = COORDINATOR.public_key().public_bytes_raw().hex()


@pytest.fixture
def settings(tmp_path):
    made = enrol(
        home=tmp_path / "home", name="site-a", aggregator="localhost:1", images=tmp_path / "images"
    )
    name_coordinators(made.home, [KEY])
    index(made, patients=6)
    return made


def index(settings, *, patients):
    generator = np.random.default_rng(0)
    hu = generator.integers(-1000, 500, (40, 40)).astype(np.int16)
    build_cohort(
        settings.cohort_path,
        [PatientSlices(f"{n:032x}", [Slice(hu, (1.0, 1.0), 2.0)]) for n in range(patients)],
        modality="CT",
    )


def request(*, local_steps=3, round=1, kind="gradients", seed=0):
    contract = RunContract(
        name="tiny",
        seed=seed,
        task=CtDenoise(size_px=32, angles=30, bins=48),
        student=TINY,
        anchor_network=TINY,
        anchor=Anchor(rounds=2, local_steps=local_steps, batch=2, crop_px=16),
        probes=Probes(requests=2, draws=1, depths=(0,)),
    )
    network = "anchor" if kind == "local-steps" else "student"
    weights = start(contract, kind=kind, network=network, round=round).numpy()[None]
    return encode(
        probe_batch(
            contract=contract,
            round=round,
            kind=kind,
            network=network,
            weights=weights,
            mandate=sign_contract(contract.digest(), COORDINATOR),
        )
    )


@contextmanager
def running(settings, *, ready=True):
    """A worker process; its output is in ``home/out``."""
    output = settings.home / "out"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "site_agent.cli", "worker", "--home", str(settings.home)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "FEDSTILL_THREADS": "1"},
        )
    try:
        deadline = time.monotonic() + 60
        while ready and b"worker ready" not in output.read_bytes():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def internet_sockets(pid):
    """Inodes of the process's TCP and UDP sockets, from its open files and its network's tables."""
    open_inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # the folder's own descriptor, already closed
            found = re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink()))
            open_inodes |= {found[1]} if found else set()
    table = set()
    for protocol in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        path = Path(f"/proc/{pid}/net/{protocol}")
        if path.exists():
            table |= {line.split()[9] for line in path.read_text().splitlines()[1:]}
    return open_inodes & table


@pytest.mark.slow
def test_the_worker_answers_has_no_network_and_survives_being_killed(settings):
    with running(settings) as process:
        answer = call(settings.socket_path, request(), timeout_s=60)
        assert decode(answer).header.type == "summary"
        assert settings.socket_path.stat().st_mode & 0o777 == 0o600
        # Positive control: the test would see a listening TCP socket, here one of its own.
        with socket.create_server(("127.0.0.1", 0)):
            assert internet_sockets(os.getpid())
            assert not internet_sockets(process.pid)
        # A second worker on this home is refused, with the fix.
        with running(settings, ready=False) as second:
            assert second.wait(60) == 2
            assert "another worker is running" in (settings.home / "out").read_text()
        process.kill()
        process.wait()
    with running(settings) as process:
        assert call(settings.socket_path, request(), timeout_s=60) == answer
        # A new index is taken without a restart.
        index(settings, patients=2)
        refused = decode(call(settings.socket_path, request(round=2), timeout_s=60)).header
        assert (refused.type, refused.code) == ("refusal", "too-few-patients")
        # A changed policy, too; and one that is lost allows nothing.
        policy = settings.home / "policy.toml"
        named = f'coordinators = ["{KEY}"]\n'
        for text in (named + 'tasks = ["mr-sr"]\n', "damaged", None):
            policy.unlink() if text is None else policy.write_text(text)
            refused = decode(call(settings.socket_path, request(), timeout_s=60)).header
            assert (refused.type, refused.code) == ("refusal", "policy")
        policy.write_text(named)
        assert call(settings.socket_path, request(round=1), timeout_s=60) == answer
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert not settings.socket_path.exists()
    log = AuditLog(settings.audit_path)
    assert not log.verify(decode(answer).header.audit_head).faults
    told = [line.event for line in log.lines()]
    # Killed, it did not stop; what was asked again was told to be repeated.
    assert told[:5] == ["started", "cohort", "answered", "started", "cohort"]
    changed = ["repeated", "cohort", "refused", "policy", "refused", "policy", "refused", "refused"]
    assert told[5:] == [*changed, "policy", "repeated", "stopped"]


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_worker_killed_at_any_instant_has_told_its_log_of_all_that_left(settings):
    chance, heads = random.Random(0), []
    many = "max_requests_an_hour = 100000\nmax_requests_a_day = 100000\n"
    (settings.home / "policy.toml").write_text(f'coordinators = ["{KEY}"]\n{many}')
    for _ in range(4):
        with running(settings) as process:
            killer = threading.Timer(chance.uniform(0.0, 0.3), process.kill)
            killer.start()
            with suppress(OSError):
                for number in range(1000):
                    payload = request(round=1 + number % 4, seed=chance.randrange(2**31))
                    header = decode(call(settings.socket_path, payload, timeout_s=60)).header
                    assert header.type == "summary"
                    heads.append(header.audit_head)
            killer.join()
    log = AuditLog(settings.audit_path)
    assert heads and all(not log.verify(head).faults for head in heads)
    told = {line.fields["numbers"] for line in log.lines() if line.event == "answered"}
    kept = {
        hashlib.sha256(decode(path.read_bytes()).arrays["values"].tobytes()).hexdigest()
        for path in settings.outbox_path.glob("*/*.safetensors")
    }
    assert len(heads) <= len(kept) and kept <= told


@pytest.mark.slow
def test_status_and_sigterm_while_computing(settings):
    with running(settings) as process:
        asked = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from pathlib import Path; from site_agent.frames import call;"
                "call(Path(sys.argv[1]), sys.stdin.buffer.read(), timeout_s=60)",
                str(settings.socket_path),
            ],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        asked.stdin.write(request(kind="local-steps", local_steps=1000))
        asked.stdin.close()
        time.sleep(1.0)
        status = decode(call(settings.socket_path, STATUS, timeout_s=5)).header
        assert status.answered == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
        asked.wait()
    assert not list(settings.outbox_path.rglob("*.safetensors"))


@pytest.mark.slow
def test_a_home_with_a_long_path_works(tmp_path):
    home = tmp_path / ("long" * 30) / "home"
    made = enrol(home=home, name="a", aggregator="localhost:1", images=tmp_path)
    with running(made):
        header = decode(call(made.socket_path, STATUS, timeout_s=10)).header
        assert header.ready is False  # nothing is indexed
