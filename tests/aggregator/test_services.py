import socket
from pathlib import Path

import pytest

from aggregator import services
from aggregator.home import AggregatorHome, create_home
from aggregator.services import ServiceError


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
