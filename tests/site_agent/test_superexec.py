import os
import signal
import time
from types import ModuleType
from typing import Any

import flwr.supercore.superexec.run_superexec as run_superexec
import flwr.supernode.runtime.run_clientapp as runtime
import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResultStatus

from site_agent import superexec
from site_agent.clientapp import app
from site_agent.superexec import ForkingExecutor, replace_sleep, serve_our_app_alone


def spec(task_type: TaskType) -> ExecutionSpec:
    return ExecutionSpec(
        task_type=task_type,
        runtime_api_address="127.0.0.1:1",
        token="t",
        insecure=True,
        root_certificates_path=None,
        runtime_dependency_install=False,
        parent_pid=os.getpid(),
        suppress_output=False,
        task_id=1,
        fab_hash=None,
    )


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Flower's ClientApp process, put back as it was after the test."""
    for name in (
        "get_load_client_app_fn",
        "install_from_fab",
        "get_project_dir",
        "install_app_dependencies",
        "Error",
    ):
        monkeypatch.setattr(runtime, name, getattr(runtime, name))
    serve_our_app_alone()
    return runtime


def test_whatever_bundle_arrives_our_app_is_loaded(flower: Any) -> None:
    load = flower.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
    assert load("somebody/evil", "6.6.6", "0" * 64) is app


def test_a_bundle_is_never_unpacked(flower: Any) -> None:
    assert flower.install_from_fab(b"not even a zip", skip_prompt=True) is None


def test_the_text_of_an_exception_is_replaced(flower: Any) -> None:
    error = flower.Error(code=7, reason="<class 'ValueError'>:<'CANARY'>")
    assert error.code == 7
    assert "CANARY" not in error.reason


def test_only_clientapp_tasks_are_taken() -> None:
    executor = ForkingExecutor()
    assert executor.get_eligible_capacity(set(TaskType), insecure=True) == (
        {TaskType.CLIENT_APP},
        set(),
    )
    for task_type in set(TaskType) - {TaskType.CLIENT_APP}:
        assert executor.launch(spec(task_type)).status == LaunchResultStatus.FAILED


def test_a_child_answers_and_ends_and_nothing_of_it_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run_clientapp(**_: object) -> None:
        os._exit(0)

    monkeypatch.setattr(runtime, "run_clientapp", run_clientapp)
    executor = ForkingExecutor()
    # pytest runs no other thread here; the executor's process has one that only sleeps
    assert executor.launch(spec(TaskType.CLIENT_APP)).status == LaunchResultStatus.ACCEPTED
    (child,) = executor._children
    deadline = time.monotonic() + 10
    while executor._children and time.monotonic() < deadline:
        executor.reconcile()
        time.sleep(0.01)
    assert not executor._children
    with pytest.raises(ChildProcessError):
        os.waitpid(child, os.WNOHANG)  # reaped: not ours any more


def test_a_child_that_hangs_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "run_clientapp", lambda **_: time.sleep(60))
    executor = ForkingExecutor()
    for _ in range(superexec.MAX_CHILDREN):
        assert executor.get_eligible_capacity(set(TaskType))[0] == {TaskType.CLIENT_APP}
        executor.launch(spec(TaskType.CLIENT_APP))
    start = time.monotonic()
    executor.reconcile()
    assert time.monotonic() - start < 1
    assert executor.get_eligible_capacity(set(TaskType))[0] == set()
    for child in executor._children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_another_flower_is_noticed() -> None:
    with pytest.raises(RuntimeError, match=r"flwr==1\.41\.0"):
        replace_sleep(superexec.exit_handler, time.sleep)  # type: ignore[attr-defined]


def test_flowers_loop_uses_of_time_what_we_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_superexec, "time", run_superexec.time)
    slept: list[float] = []
    replace_sleep(run_superexec, slept.append)
    run_superexec.time.sleep(1.0)
    assert slept == [1.0]
