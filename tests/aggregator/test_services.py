import socket
import threading
from pathlib import Path

import pytest

from aggregator import services
from aggregator.home import AggregatorHome, create_home
from aggregator.services import Service, ServiceError
from shared.processes import Process, ProcessError, spawn, stop_all


@pytest.fixture
def home(tmp_path: Path) -> AggregatorHome:
    return create_home(tmp_path, {})


def test_a_port_in_use_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "PORT_FREE_WITHIN_S", 0.1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=f"port {port} .*superlink_port"):
            services._await_port("127.0.0.1", port, field="superlink_port")
    services._await_port("127.0.0.1", port, field="superlink_port")


def test_a_program_that_ends_is_started_again_even_if_that_fails_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "RESTART_AFTER_S", 0.01)
    stop, said, starts = threading.Event(), list[str](), 0

    def start() -> Process:
        nonlocal starts
        starts += 1
        if starts == 1:
            raise ProcessError("the port is taken")
        stop.set()
        return spawn(["sleep", "60"], log=tmp_path / "program.log")

    first = spawn(["false"], log=tmp_path / "program.log")
    first.wait(10)
    running = {"program": first}
    try:
        services._supervise([Service("program", start)], running, stop=stop, say=said.append)
        assert running["program"].poll() is None
    finally:
        stop_all(list(running.values()), grace_s=5)
    assert starts == 2
    assert said[:2] == ["program ended with 1; starting it again", "the port is taken"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('database = "postgresql://me:hunter2@127.0.0.1:1/db"', "cannot be opened"),
        ('storage = "zz://a"', "Protocol not known"),
        ('storage = "relative"', "storage"),
    ],
)
def test_an_api_that_cannot_start_says_why_in_a_line(
    tmp_path: Path, setting: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "aggregator.toml").write_text(setting)
    monkeypatch.setenv("FEDSTILL_HOME", str(tmp_path))
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as caught:
        services.serve_api()
    assert "hunter2" not in str(caught.value)
