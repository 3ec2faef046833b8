import os
import sys
import time
from pathlib import Path

import flwr.superlink.cli as cli
import flwr.superlink.grid.http_grid as http_grid
import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResultStatus

from aggregator import executor
from aggregator.executor import SERVERAPP, ServerApps, executor_command
from aggregator.home import create_home
from aggregator.superlink import superlink_command
from shared.flower import RuntimeClient


def spec(task_type: TaskType) -> ExecutionSpec:
    return ExecutionSpec(
        task_type=task_type,
        runtime_api_address="127.0.0.1:1",
        token="t",
        insecure=False,
        root_certificates_path="ca.crt",
        runtime_dependency_install=False,
        parent_pid=os.getpid(),
        suppress_output=True,
        task_id=1,
        fab_hash=None,
    )


def test_serverapps_alone_are_taken() -> None:
    apps = ServerApps()
    assert apps.get_eligible_capacity(set(TaskType)) == ({TaskType.SERVER_APP}, set())
    for task_type in set(TaskType) - {TaskType.SERVER_APP}:
        assert apps.launch(spec(task_type)).status == LaunchResultStatus.FAILED


def test_a_serverapp_is_our_process_with_flowers_arguments_and_is_collected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\necho "$@" > {said}\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    apps = ServerApps()
    assert apps.launch(spec(TaskType.SERVER_APP)).status == LaunchResultStatus.ACCEPTED
    deadline = time.monotonic() + 10
    while apps._running and time.monotonic() < deadline:
        apps.reconcile()
        time.sleep(0.01)
    assert not apps._running
    assert said.read_text().split() == [
        *("-P", "-m", "aggregator.executor", "flwr-serverapp"),
        *("--runtime-api-address", "127.0.0.1:1", "--token", "t"),
        *("--root-certificates", "ca.crt", "--parent-pid", str(os.getpid())),
    ]


def test_a_serverapp_has_the_client_that_bears_broken_handshakes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_grid, "RuntimeHttpClient", http_grid.RuntimeHttpClient)
    monkeypatch.setattr(sys, "argv", ["executor.py"])
    seen: list[object] = []
    monkeypatch.setattr(
        cli,
        "flwr_serverapp",
        lambda: seen.append((sys.argv, http_grid.RuntimeHttpClient)),
    )
    executor.main([SERVERAPP, "--token", "t"])
    assert seen == [([SERVERAPP, "--token", "t"], RuntimeClient)]


def test_nobody_but_this_homes_executor_may_take_a_task(tmp_path: Path) -> None:
    home = create_home(tmp_path / "home", {})
    command = superlink_command(home)
    at = command.index("--isolation")
    assert command[at : at + 4] == [
        *("--isolation", "process", "--superexec-auth-secret-file", str(home.executor_secret))
    ]
    assert executor_command(home)[-1] == str(home.executor_secret)
