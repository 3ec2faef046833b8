"""What the edge proxy asks before it answers for a small file from its own cache.

With the asker's ``Authorization`` and the version in ``X-Edge-For`` it asks ``/edge/grant``; a
grant is ``X-Edge-Key``, the name under which the edge keeps the version's files, good until the end
of the second in which it was decided. No grant is no refusal: the edge then passes the request on,
and the API answers it as any other. A file the edge does not have it asks for with the key; what
the API answers to that, it may keep. Its log says what it sent (``aggregator/access/edge_log.py``).
"""

import asyncio
import time
from functools import partial

from fastapi import Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from aggregator.access.edge_log import EdgeLog, Grant
from aggregator.access.recall import Recall
from aggregator.access.tokens import Tokens
from aggregator.api.datasets import find_version
from aggregator.api.errors import ApiError
from aggregator.api.principal import resolve
from aggregator.api.rates import Rates
from aggregator.catalog import Version

PATH = "/edge/grant"
FOR, KEY, RECORD, LIMITED = "X-Edge-For", "X-Edge-Key", "X-Edge-Record", "X-Edge-Limited"
KEPT_S = 3600
MOST_BYTES = 2**20
"""Larger files nginx sends by ``X-Accel-Redirect``: to ask costs little beside sending them."""


class Grants:
    """The ASGI app at ``PATH``; those who ask the same in the same second are decided once."""

    def __init__(self, *, log: EdgeLog, rates: Rates, tokens: Tokens, recall: Recall) -> None:
        self._log = log
        self._rates = rates
        self._tokens = tokens
        self._recall = recall
        self._second = 0
        self._decisions: dict[tuple[str, str], asyncio.Task[dict[str, str]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, always with 200 and nothing in it: what counts are the headers."""
        headers = Headers(scope=scope)
        asked = (headers.get("Authorization", ""), headers.get(FOR, ""))
        second = int(time.time())
        if second != self._second:
            self._second, self._decisions = second, {}
        if asked not in self._decisions:
            decision = asyncio.ensure_future(self._decide(scope, headers))
            self._decisions[asked] = decision
        found = await asyncio.shield(self._decisions[asked])
        # Absolute: nginx counts whole seconds, and one from now may be nearly two.
        answer = Response(headers={**found, "X-Accel-Expires": f"@{second}"})
        await answer(scope, receive, send)

    async def _decide(self, scope: Scope, headers: Headers) -> dict[str, str]:
        parts = headers.get(FOR, "").split("/")
        if len(parts) != 3:
            return {}
        try:
            who = await resolve(headers, tokens=self._tokens, recall=self._recall)
        except ApiError:
            return {}
        if not who.name:
            return {}
        if not self._log.kept:
            # The line this makes the edge write shows that it can.
            return {RECORD: "null"}
        if scope["app"].state.audit.full or not self._rates.ample(f"name {who.name}"):
            return {}
        request = Request({**scope, "state": {"principal": who}})
        try:
            version = await run_in_threadpool(partial(find_version, request, *parts, reading=True))
        except ApiError:
            return {}
        record = Grant(
            principal=who.name,
            token_id=who.token_id,
            dataset=f"{version.namespace}/{version.name}",
            number=version.number,
        )
        limited = {LIMITED: who.name} if self._rates.counted else {}
        return {KEY: key(version), RECORD: record.model_dump_json(), **limited}


def key(version: Version) -> str:
    """Under which the edge keeps a version's files."""
    return f"{version.namespace}/{version.name}@{version.number}:{version.commit}"


def may_keep(request: Request, version: Version, *, size: int) -> bool:
    """Whether the edge asks for a file so as to keep it, and may."""
    # What `main` is may have changed since it was granted: the key says what was.
    return (
        request.app.state.edge_log is not None
        and request.headers.get(KEY) == key(version)
        and (size <= MOST_BYTES or request.method == "HEAD")
    )
