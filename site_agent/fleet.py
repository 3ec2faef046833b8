"""How the SuperNode bears a network that swallows what is sent, and comes back.

The SuperLink hands a question out once, and Flower's node tries a request again only while nothing
in the error's text reads like TLS. So an answer is dropped after a handshake that timed out, and a
question whose transport broke is never answered, though the round waits for it. Here

1. a request that timed out is tried again, whatever its text says, and so is a connection that
   broke while it was made (``shared.flower``);
2. a node that may have lost a question or an answer starts afresh: it says goodbye, its open
   questions count as unanswered, and the aggregator asks them again, to the same bytes;
3. a heart that stopped ends the node too;
4. the heart beats twice as often, so that a site that was killed is taken back in half a minute.
"""

import os
import signal
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

import flwr.supercore.heartbeat as heartbeat
import flwr.supernode.fleet_http_connection as connection
import httpx
from flwr.supercore.run import RunNotRunningException
from flwr.supernode.fleet_http_client import FleetHttpClient

from shared.flower import Hardy, replace

HEARTBEAT_S = 15
"""The SuperLink counts a node as online for twice as long after each beat."""
GATEWAY_ERRORS = (502, 504)


class PatientClient(Hardy, FleetHttpClient):  # type: ignore[misc]
    """Flower's client of the SuperLink's node routes."""

    _doubtful = False

    def _unary_unary(self, **request: Any) -> Any:
        try:
            return super()._unary_unary(**request)
        except httpx.TimeoutException as error:
            # The text of a handshake that timed out says "ssl", which Flower takes for a refusal.
            raise type(error)("no answer in time") from None

    def PullMessages(self, request: Any) -> Any:  # noqa: N802
        """The next question, if there is one; starts afresh where one may have been lost before."""
        try:
            answer = super().PullMessages(request)
        except (httpx.ReadTimeout, httpx.ReadError, httpx.RemoteProtocolError):
            self._doubtful = True
            raise
        except httpx.HTTPStatusError as error:
            self._doubtful |= error.response.status_code in GATEWAY_ERRORS
            raise
        if self._doubtful:
            start_afresh()
        return answer


class Losses:
    """Notices steps that failed; a run that has ended is no failure."""

    def __init__(self) -> None:
        self._failed = False

    def noticing(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The step, whose failure is remembered."""

        def attempt(*args: Any) -> Any:
            try:
                return step(*args)
            except (RunNotRunningException, ConnectionAbortedError):
                raise
            except Exception:
                self._failed = True
                raise

        return attempt

    def settle(self) -> None:
        """Starts afresh where a step has failed."""
        if self._failed:
            start_afresh()


def start_afresh() -> NoReturn:
    """Ends the SuperNode in good order; the connector starts it again."""
    os.kill(os.getpid(), signal.SIGTERM)
    raise SystemExit(0)  # where the signal's handler has not done so already


def beating(beat: Callable[[], bool]) -> Callable[[], bool]:
    """A heartbeat whose unexpected end is the node's: without one it is offline for good."""

    def attempt() -> bool:
        try:
            return beat()
        except Exception:
            os.kill(os.getpid(), signal.SIGTERM)
            raise

    return attempt


def bear_faults() -> None:
    """Gives Flower's SuperNode the client and the heart described above."""
    replace(connection, "FleetHttpClient", PatientClient)
    for module in (connection, heartbeat):
        _replace_number(module, "HEARTBEAT_DEFAULT_INTERVAL", HEARTBEAT_S)


def _replace_number(module: ModuleType, name: str, value: int) -> None:
    if not isinstance(getattr(module, name, None), int):
        raise RuntimeError(f"{module.__name__} has no {name}: fedstill needs flwr==1.41.0")
    setattr(module, name, value)
