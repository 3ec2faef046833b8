"""What is changed in Flower's own modules, in the site's processes and the aggregator's.

Flower tries a request again unless the error's text reads like TLS: a certificate that is refused
will be refused again. A handshake that merely broke, the machine being busy or a proxy starting
again, reads like TLS too, and ends a ServerApp before it began.
"""

import inspect
import re
import ssl
import time
from types import ModuleType
from typing import Any

import httpx
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.runtime import RuntimeHttpClient

BROKEN = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError)
"""What ends a handshake whose other side went away: not a refusal of what was said in it."""

PAUSES_S = (0.05, 0.2)
"""Before further tries of what Flower tries once."""


class BrokenError(httpx.ConnectError):
    """A connection that broke while it was made."""


def replace(module: ModuleType, name: str, value: Any) -> None:
    """Replaces a name in one of Flower's modules.

    Raises ``RuntimeError`` where the module has or uses no such name: Flower changed.
    """
    if not hasattr(module, name) or not re.search(rf"\b{name}\b[.(]", inspect.getsource(module)):
        raise RuntimeError(f"{module.__name__} has no {name}: fedstill needs flwr==1.41.0")
    setattr(module, name, value)


class Hardy:
    """Mixed into Flower's HTTP clients: a handshake that broke is told from one that was refused.

    Nothing was asked yet, and nothing in the new error's text keeps Flower from trying again.
    """

    def _send(self, *args: Any, **options: Any) -> httpx.Response:
        try:
            return super()._send(*args, **options)  # type: ignore[no-any-return, misc]
        except httpx.ConnectError as error:
            if not is_broken(error):
                raise
            raise BrokenError("the connection broke while it was made") from None


class RuntimeClient(Hardy, RuntimeHttpClient):  # type: ignore[misc]
    """Of the SuperLink's runtime routes: what an executor and a ServerApp use."""


class ControlClient(Hardy, ControlHttpClient):  # type: ignore[misc]
    """Of the routes by which runs are started and sites registered; Flower tries those once."""

    def _unary_unary(self, **request: Any) -> Any:
        for pause_s in PAUSES_S:
            try:
                return super()._unary_unary(**request)
            except BrokenError:
                time.sleep(pause_s)
        return super()._unary_unary(**request)


def is_broken(error: BaseException) -> bool:
    """Whether a connection failed because the other side went away while it was made."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, BROKEN):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
