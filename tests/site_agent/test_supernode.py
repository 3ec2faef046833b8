import os
import stat
import threading
import time
from pathlib import Path

import pytest

from shared.processes import Process, spawn, stop_all
from site_agent import supernode
from site_agent.enrolment import enrol
from site_agent.events import Event, Value
from site_agent.settings import SiteSettings
from site_agent.supernode import connect, explain_end, keep_connected, start_supernode


@pytest.fixture
def settings(tmp_path: Path) -> SiteSettings:
    made = enrol(home=tmp_path, name="st-anna", aggregator="localhost:1", images=tmp_path)
    made.ca_path.write_text("-----BEGIN CERTIFICATE-----")
    return made


def test_what_is_missing_is_named_with_its_fix(
    settings: SiteSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.ca_path.unlink()
    assert connect(settings) == 2
    assert "aggregator-ca.crt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "reason", "named"),
    [
        (["[code: 2004] Failed to activate SuperNode."], "key-refused", "enrolment.json"),
        (["CERTIFICATE_VERIFY_FAILED"], "certificate-refused", "aggregator-ca.crt"),
        (["first", "CANARY", " "], "ended", "supernode.log"),
        ([], "ended", "supernode.log"),
    ],
)
def test_the_end_of_a_supernode_is_explained(lines: list[str], reason: str, named: str) -> None:
    code, hint = explain_end(lines)
    assert code == reason and named in hint
    assert "CANARY" not in hint


def capture(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    seen: list[tuple[list[str], dict[str, str]]] = []

    def fake(command: list[str], *, log: Path, env: dict[str, str], cwd: Path) -> Process:
        seen.append((command, env))
        return spawn(["true"], log=log, env=env, cwd=cwd)

    monkeypatch.setattr(supernode, "spawn", fake)
    return seen


def test_the_supernode_starts_no_executor_of_its_own(
    settings: SiteSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = capture(monkeypatch)
    stop_all([start_supernode(settings)], grace_s=5)
    ((command, environment),) = seen
    assert command[command.index("--isolation") + 1] == "process"
    assert "--insecure" not in command
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"


def test_each_start_has_a_secret_of_its_own(
    settings: SiteSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture(monkeypatch)
    found = set()
    for _ in range(2):
        stop_all([start_supernode(settings)], grace_s=5)
        secret = settings.home / "flower" / "executor.secret"
        found.add(secret.read_bytes())
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert [len(secret) for secret in found] == [32, 32]


def test_a_supernode_that_ends_is_started_again(
    settings: SiteSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supernode, "RESTART_AFTER_S", 0.01)
    seen = capture(monkeypatch)
    stop, said = threading.Event(), list[str]()

    def note(event: Event, /, **fields: Value) -> None:
        said.append(f"{event}: {fields['hint']}")

    thread = threading.Thread(
        target=keep_connected, args=[settings], kwargs={"stop": stop, "note": note}
    )
    thread.start()
    deadline = time.monotonic() + 60
    while len(seen) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    thread.join()
    assert len(seen) >= 3
    assert any("trying again" in line for line in said)


def test_a_proxy_of_the_hospital_is_kept_off_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "pacs.example.org")
    assert supernode._direct_loopback()["NO_PROXY"] == "pacs.example.org,localhost,127.0.0.1"
    assert "NO_PROXY" in os.environ
