"""The site's executor of Flower tasks: answers messages with our ClientApp, and with nothing else.

Flower's own executor starts a process per message and imports whatever the bundle of the run names,
the bundle's folder first on ``sys.path``: a run could replace the site's code. This one

1. imports our ClientApp once, before it speaks to anyone,
2. takes ClientApp tasks alone, and forks for each (tens of milliseconds in place of a second),
3. never unpacks the bundle and never looks into it,
4. strips the text from Flower's own error replies,
5. sleeps until the SuperNode says that a message is there, and ends when the SuperNode does.

The SuperNode runs with ``--isolation process``: it starts no executor of its own, so that a site
where this module failed would answer nothing rather than run foreign code.
"""

import inspect
import logging
import os
import re
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NoReturn

import flwr.supercore.superexec.run_superexec as superexec
import flwr.supernode.runtime.run_clientapp as clientapp_runtime
from flwr.app.error import Error
from flwr.clientapp import ClientApp
from flwr.supercore.constant import TaskType
from flwr.supercore.exit import exit_handler
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult

from shared.flower import replace
from site_agent.clientapp import app

IDLE_POLL_S = 2.0
"""How often tasks are asked for without a word from the SuperNode: a safety net."""
MAX_CHILDREN = 4
"""The SuperNode handles one message at a time; the others may be of runs that were stopped."""
CHILD_LIFE_S = 4000
"""Longer than the worker may take: a child that still lives then hangs."""
log = logging.getLogger("fedstill")


class ForkingExecutor:
    """Runs our ClientApp in forks of this process, one for each message."""

    def __init__(self) -> None:
        self._children: set[int] = set()

    def get_eligible_capacity(
        self, supported_task_types: set[TaskType], **_: object
    ) -> tuple[set[TaskType], set[str]]:
        """ClientApp tasks only: nothing else that arrives is ever taken."""
        if len(self._children) >= MAX_CHILDREN:
            return set(), set()
        return supported_task_types & {TaskType.CLIENT_APP}, set()

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Forks; the child answers the message and ends."""
        if spec.task_type != TaskType.CLIENT_APP:
            return LaunchResult.failed("this site runs its own ClientApp only")
        child = os.fork()
        if child == 0:
            _answer_and_exit(spec)
        self._children.add(child)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Takes leave of children that have ended."""
        for child in tuple(self._children):
            if os.waitpid(child, os.WNOHANG)[0]:
                self._children.remove(child)

    def close(self) -> None:
        """Ends children that still answer."""
        for child in self._children:
            os.kill(child, signal.SIGTERM)


def _answer_and_exit(spec: ExecutionSpec) -> NoReturn:
    """The child's life. It must never return into the parent's loop, nor run its exit handlers."""
    code = 1
    try:
        signal.alarm(CHILD_LIFE_S)
        exit_handler.registered_exit_handlers.clear()
        clientapp_runtime.run_clientapp(
            runtime_api_address=spec.runtime_api_address,
            token=spec.token,
            insecure=spec.insecure,
            parent_pid=spec.parent_pid,
        )
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        log.error("the ClientApp process failed: %r", error)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve_our_app_alone() -> None:
    """Makes Flower's ClientApp process answer with our app, whatever bundle arrives."""

    def our_app(**_: object) -> Callable[..., ClientApp]:
        return lambda *_: app

    def no_installation(*_: object, **__: object) -> None:
        """The bundle stays a string of bytes."""

    def silent_error(code: int, reason: str | None = None) -> Error:
        return Error(code=code, reason="the site could not answer; see its log")

    replace(clientapp_runtime, "get_load_client_app_fn", our_app)
    replace(clientapp_runtime, "install_from_fab", no_installation)
    replace(clientapp_runtime, "get_project_dir", lambda *_: Path(os.devnull))
    replace(clientapp_runtime, "install_app_dependencies", no_installation)
    replace(clientapp_runtime, "Error", silent_error)


def replace_sleep(module: ModuleType, sleep: Callable[[float], None]) -> None:
    """Gives one of Flower's modules another ``time.sleep``.

    Raises ``RuntimeError`` where the module uses anything else of ``time``: Flower changed.
    """
    used = set(re.findall(r"\btime\.([a-z_]+)\(", inspect.getsource(module)))
    if used != {"sleep"}:
        raise RuntimeError(f"{module.__name__} uses time.{used}: fedstill needs flwr==1.41.0")
    replace(module, "time", SimpleNamespace(sleep=sleep))


def main(arguments: list[str]) -> None:
    """Serves ``ADDRESS SECRET_FILE WAKE_FD`` until the wake pipe closes."""
    address, secret_file, wake_fd = arguments[0], Path(arguments[1]), int(arguments[2])

    def until_woken(_seconds: float) -> None:
        if select.select([wake_fd], [], [], IDLE_POLL_S)[0] and not os.read(wake_fd, 4096):
            os.kill(os.getpid(), signal.SIGTERM)  # the SuperNode is gone

    serve_our_app_alone()
    executor = ForkingExecutor()
    replace(superexec, "get_executor", lambda *_, **__: executor)
    replace_sleep(superexec, until_woken)
    superexec.run_superexec(
        runtime_api_address=address,
        insecure=True,  # plain HTTP on loopback between two processes of the site, authenticated
        superexec_auth_secret=secret_file.read_bytes(),
        runtime_dependency_install=False,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
