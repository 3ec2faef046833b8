"""The SuperLink of this aggregator: how it is started, and what is asked of it.

It listens on loopback alone: whoever reaches its control API can start code on this machine. The
client here speaks that API as Flower's own command line does, without a new process a question.
"""

import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from aggregator.home import HOME_VARIABLE, AggregatorHome
from shared.flower import ControlClient

READY_LINE = "Uvicorn running on"
READY_WITHIN_S = 60.0
LOOPBACK = "localhost,127.0.0.1"


class SuperLinkError(RuntimeError):
    """The SuperLink is not there or refused; the text says what to do."""


@dataclass(frozen=True)
class Node:
    """A site as the SuperLink sees it."""

    id: int
    name: str
    public_key: bytes
    online: bool


def superlink_command(home: AggregatorHome) -> list[str]:
    """The command line of the SuperLink."""
    return [
        str(Path(sys.executable).with_name("flower-superlink")),
        *("--host", "127.0.0.1", "--port", str(home.settings.superlink_port)),
        *("--ssl-ca-certfile", str(home.tls / "ca.crt")),
        *("--ssl-certfile", str(home.tls / "server.crt")),
        *("--ssl-keyfile", str(home.tls / "server.key")),
        "--enable-supernode-auth",
        *("--database", str(home.database)),
        "--disable-runtime-dependency-installation",
        # It starts no executor of its own: `up` starts ours, and again where it ends.
        *("--isolation", "process", "--superexec-auth-secret-file", str(home.executor_secret)),
    ]


def superlink_environment(home: AggregatorHome) -> dict[str, str]:
    """What the SuperLink and the ServerApp below it need in their environment."""
    binaries = str(Path(sys.executable).parent)
    return {
        "FLWR_HOME": str(home.flower),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        HOME_VARIABLE: str(home.root),
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        **direct_loopback(),
    }


def direct_loopback() -> dict[str, str]:
    """Keeps a proxy of the environment away from connections inside this machine."""
    present = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
    value = f"{present},{LOOPBACK}" if present else LOOPBACK
    return {"NO_PROXY": value, "no_proxy": value}


def tidy_database(path: Path, *, revoked: Sequence[bytes] = ()) -> None:
    """Prepares the database of a SuperLink that is not running for its next start.

    Nodes that were online when it was killed would be refused for up to a minute: they are set
    offline. Nodes with a ``revoked`` key are unregistered: not for a moment are they accepted
    again. The space of finished runs is given back. A database that is not there yet is fine.
    """
    if not path.exists():
        return
    with sqlite3.connect(path, timeout=10) as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE name = 'node'").fetchall()
        if tables:
            database.execute(
                "UPDATE node SET status = 'offline', online_until = ? WHERE status = 'online'",
                (time.time(),),
            )
            database.executemany(
                "UPDATE node SET status = 'unregistered' WHERE public_key = ?",
                [(key,) for key in revoked],
            )
    # What finished runs left unused; a start is worth more where there is no room for it.
    with suppress(sqlite3.OperationalError):
        database.execute("VACUUM")
    database.close()


class SuperLink:
    """Questions to a running SuperLink. Every method raises ``SuperLinkError``."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client

    def nodes(self) -> list[Node]:
        """The enrolled sites."""
        with _errors():
            answer = self._client.ListNodes(ListNodesRequest())
        return [
            Node(
                id=node.node_id,
                name=node.name,
                public_key=node.public_key,
                online=node.status == "online",
            )
            for node in answer.nodes_info
            if node.status != "unregistered"
        ]

    def register(self, *, name: str, public_key: bytes) -> None:
        """Lets the holder of ``public_key`` (OpenSSH) connect under ``name``. Safe to repeat."""
        request = RegisterNodeRequest(public_key=public_key, name=name)
        with _errors(accept={ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE}):
            self._client.RegisterNode(request)

    def unregister(self, node_id: int) -> None:
        """Refuses the holder of a node's key from now on, for good; one that is gone is fine."""
        with _errors(accept={ApiErrorCode.NODE_NOT_FOUND}):
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def start(self, *, bundle: bytes, digest: str, config: Mapping[str, str]) -> int:
        """Starts a run of ``bundle`` (its SHA-256 is ``digest``); gives Flower's run id."""
        request = StartRunRequest(
            fab=fab_to_proto(Fab(digest, bundle, {})),
            override_config=user_config_to_proto(dict(config)),
        )
        with _errors():
            answer = self._client.StartRun(request)
        if not answer.HasField("run_id"):
            raise SuperLinkError("the SuperLink did not start the run; see logs/superlink.log")
        return int(answer.run_id)

    def has_ended(self, run_id: int) -> bool:
        """Whether Flower counts the run as finished, or no longer knows it."""
        return self.ending(run_id) is not None

    def ending(self, run_id: int) -> str | None:
        """How the run ended, in Flower's words, which may be none; None while it has not."""
        with _errors():
            runs = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict
        if run_id not in runs:
            return "the SuperLink does not know it"
        status = runs[run_id].status
        return str(status.details) if status.status == "finished" else None

    def stop(self, run_id: int) -> None:
        """Stops a run; one that has ended is fine."""
        with _errors(accept={ApiErrorCode.RUN_ALREADY_FINISHED}):
            self._client.StopRun(StopRunRequest(run_id=run_id))


@contextmanager
def superlink(home: AggregatorHome) -> Iterator[SuperLink]:
    """A connection to this home's SuperLink. Connecting fails at the first question, not here."""
    os.environ.update(direct_loopback())
    client = ControlClient.from_server_address(
        server_address=home.superlink_address,
        insecure=False,
        root_certificates=(home.tls / "ca.crt").read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    )
    try:
        yield SuperLink(client)
    finally:
        client.close()


@contextmanager
def _errors(accept: frozenset[int] | set[int] = frozenset()) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPStatusError as error:
        reason = FlowerError.from_json(error.response.text)
        if reason is not None and reason.code in accept:
            return
        text = reason.message if reason is not None else f"HTTP {error.response.status_code}"
        raise SuperLinkError(f"the SuperLink refused: {text}") from None
    except httpx.TransportError as error:
        raise SuperLinkError(
            f"the SuperLink does not answer ({type(error).__name__}): is `aggregator up` running?"
        ) from None
