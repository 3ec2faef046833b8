"""The aggregator's executor of Flower tasks: starts a ServerApp for each run, and nothing else.

Flower's SuperLink would start an executor of its own, once: were that to end, no run would begin
until somebody starts the SuperLink again. This one is a program of `aggregator up`, which starts it
again with its SuperLink. It, and the ServerApps below it, take a handshake with a busy SuperLink
that broke for what it is, and what they write is in ``logs/executor.log``.
"""

import subprocess
import sys
from pathlib import Path

import flwr.supercore.superexec.run_superexec as superexec
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult

from aggregator.home import AggregatorHome
from shared.flower import RuntimeClient, replace

SERVERAPP = "flwr-serverapp"
"""What a ServerApp's process is called, as Flower calls its own."""


class ServerApps:
    """Runs ServerApps, each in a process of its own, and nothing else that the SuperLink has."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    def get_eligible_capacity(
        self, supported_task_types: set[TaskType], **_: object
    ) -> tuple[set[TaskType], set[str]]:
        """ServerApps, any number; nothing else is ever taken."""
        return supported_task_types & {TaskType.SERVER_APP}, set()

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Starts the ServerApp, which ends with this process."""
        if spec.task_type != TaskType.SERVER_APP:
            return LaunchResult.failed("an aggregator runs ServerApps only")
        command = [
            *(sys.executable, "-P", "-m", "aggregator.executor", SERVERAPP),
            *("--runtime-api-address", spec.runtime_api_address, "--token", spec.token),
            *("--root-certificates", str(spec.root_certificates_path)),
            *("--parent-pid", str(spec.parent_pid)),
        ]
        self._running.append(subprocess.Popen(command))
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Takes leave of ServerApps that have ended."""
        self._running = [one for one in self._running if one.poll() is None]

    def close(self) -> None:
        """They notice by themselves that this process is gone."""


def executor_command(home: AggregatorHome) -> list[str]:
    """The command line of the executor."""
    return [
        *(sys.executable, "-P", "-m", "aggregator.executor"),
        *(f"127.0.0.1:{home.settings.superlink_port}", str(home.tls / "ca.crt")),
        str(home.executor_secret),
    ]


def main(arguments: list[str]) -> None:
    """Serves ``ADDRESS CA_FILE SECRET_FILE``, or is a ServerApp with Flower's own arguments."""
    if arguments[0] == SERVERAPP:
        _be_a_serverapp(arguments)
        return
    address, authority, secret = arguments
    replace(superexec, "RuntimeHttpClient", RuntimeClient)
    replace(superexec, "get_executor", lambda *_, **__: ServerApps())
    superexec.run_superexec(
        runtime_api_address=address,
        insecure=False,
        root_certificates_path=authority,
        superexec_auth_secret=Path(secret).read_bytes(),
        runtime_dependency_install=False,
    )


def _be_a_serverapp(arguments: list[str]) -> None:
    # 30 MiB that the executor itself does without, all its life.
    import flwr.superlink.cli as cli
    import flwr.superlink.grid.http_grid as http_grid

    replace(http_grid, "RuntimeHttpClient", RuntimeClient)
    sys.argv = arguments
    cli.flwr_serverapp()


if __name__ == "__main__":
    main(sys.argv[1:])
