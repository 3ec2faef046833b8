import sqlite3
import time
from pathlib import Path

import httpx
import pytest
from flwr.supercore.error import ApiErrorCode

from aggregator.home import AggregatorHome, create_home
from aggregator.superlink import (
    SuperLink,
    SuperLinkError,
    superlink,
    superlink_command,
    superlink_environment,
    tidy_database,
)


@pytest.fixture
def home(tmp_path: Path) -> AggregatorHome:
    return create_home(tmp_path, {"superlink_port": 1})  # nobody listens on port 1


def test_the_superlink_listens_on_loopback_with_tls_and_node_keys(home: AggregatorHome) -> None:
    command = superlink_command(home)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert "--enable-supernode-auth" in command
    assert "--insecure" not in command


def test_nothing_reaches_out(home: AggregatorHome) -> None:
    environment = superlink_environment(home)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"


def test_a_superlink_that_is_down_says_what_to_start(home: AggregatorHome) -> None:
    with superlink(home) as link, pytest.raises(SuperLinkError, match="aggregator up"):
        link.nodes()


class Refusing:
    """Answers every question with one of Flower's errors."""

    def __init__(self, code: int) -> None:
        self._code = code

    def __getattr__(self, _name: str) -> object:
        def answer(_request: object) -> None:
            request = httpx.Request("POST", "https://localhost")
            body = {"code": int(self._code), "detail": "text of Flower"}
            response = httpx.Response(400, json=body, request=request)
            raise httpx.HTTPStatusError("", request=request, response=response)

        return answer


def test_a_known_key_and_an_ended_run_are_fine() -> None:
    SuperLink(Refusing(ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE)).register(  # type: ignore[arg-type]
        name="a", public_key=b"k"
    )
    SuperLink(Refusing(ApiErrorCode.RUN_ALREADY_FINISHED)).stop(1)  # type: ignore[arg-type]
    SuperLink(Refusing(ApiErrorCode.NODE_NOT_FOUND)).unregister(1)  # type: ignore[arg-type]


def test_other_errors_are_told() -> None:
    link = SuperLink(Refusing(ApiErrorCode.PUBLIC_KEY_NOT_VALID))  # type: ignore[arg-type]
    with pytest.raises(SuperLinkError, match="text of Flower"):
        link.register(name="a", public_key=b"k")


def test_nodes_of_a_killed_superlink_are_set_offline_and_revoked_ones_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "superlink.db"
    tidy_database(path)  # none yet
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE node (node_id, status, online_until, public_key)")
        future = time.time() + 60
        rows = [
            (1, "online", future, b"1"),
            (2, "registered", None, b"2"),
            (3, "unregistered", None, b"3"),
            (4, "online", future, b"4"),
        ]
        database.executemany("INSERT INTO node VALUES (?, ?, ?, ?)", rows)
    database.close()
    tidy_database(path, revoked=[b"4"])
    database = sqlite3.connect(path)
    states = dict(database.execute("SELECT node_id, status FROM node"))
    (until,) = database.execute("SELECT online_until FROM node WHERE node_id = 1").fetchone()
    database.close()
    assert states == {1: "offline", 2: "registered", 3: "unregistered", 4: "unregistered"}
    assert until <= time.time()
