"""What every request passes: whose it is, how many there were, how much it carries; headers.

The principal counts requests with a token, the address those without; of an IPv6 address the /64.
"""

import ipaddress
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aggregator.access.principals import ANONYMOUS
from aggregator.access.recall import Recall
from aggregator.access.tokens import Tokens
from aggregator.api.edge import PATH as GRANTS_PATH
from aggregator.api.edge import Grants
from aggregator.api.errors import ApiError
from aggregator.api.principal import resolve
from aggregator.api.rates import Rates

MAX_BODY_BYTES = 65_536
HARDENING = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
Refuse = Callable[[Request, ApiError], Response]


class Gate:
    """ASGI middleware around the whole API; ``grants`` answers the edge proxy."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        tokens: Tokens,
        recall: Recall,
        refuse: Refuse,
        rates: Rates,
        grants: Grants | None,
        behind_proxy: bool,
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._recall = recall
        self._refuse = refuse
        self._rates = rates
        self._grants = grants
        self._behind_proxy = behind_proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or lets through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._grants is not None and scope["path"] == GRANTS_PATH:
            await self._grants(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._behind_proxy:
            scope["scheme"] = "https" if headers.get("X-Forwarded-Proto") == "https" else "http"

        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in HARDENING.items():
                    answer.setdefault(name, value)
                answer.add_vary_header("Authorization")
                if "Authorization" in headers:
                    # What one may have, a cache between gives to nobody else.
                    answer["Cache-Control"] = "private, no-cache"
            await send(message)

        try:
            await self._enter(scope, headers)
            inward = bounded(receive, headers)
        except ApiError as error:
            answer = self._refuse(Request(scope), error)
            await answer(scope, receive, hardened)
            return
        await self._app(scope, inward, hardened)

    async def _enter(self, scope: Scope, headers: Headers) -> None:
        state = scope.setdefault("state", {})
        state["principal"] = ANONYMOUS
        state["address"] = self._address(scope, headers)
        try:
            who = await resolve(headers, tokens=self._tokens, recall=self._recall)
        except ApiError:
            self._rates.count(f"address {self._address(scope, headers)}")
            raise
        state["principal"] = who
        self._rates.count(
            f"name {who.name}" if who.name else f"address {self._address(scope, headers)}"
        )

    def _address(self, scope: Scope, headers: Headers) -> str:
        client: Any = scope.get("client")
        text = client[0] if client else ""
        if self._behind_proxy:
            # The last is what our own proxy saw; those before it are the client's word.
            text = headers.get("X-Forwarded-For", text).rpartition(",")[2].strip()
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return "unknown"
        if address.version == 6:
            return str(ipaddress.ip_network((address, 64), strict=False).network_address)
        return str(address)


def bounded(receive: Receive, headers: Headers) -> Receive:
    """``receive`` that gives ``MAX_BODY_BYTES`` at most; raises the 413, at once where it can."""
    refusal = ApiError(413, "the request's body is too large", f"send {MAX_BODY_BYTES} bytes")
    length = headers.get("Content-Length", "0")
    if not (length.isascii() and length.isdecimal()) or int(length[:20]) > MAX_BODY_BYTES:
        raise refusal
    taken = 0

    async def some() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MAX_BODY_BYTES:
            raise refusal
        return message

    return some
