"""What the edge proxy asks before it answers for a small file from its own cache.

With the asker's ``Authorization`` and the version in ``X-Edge-For`` it asks here; a grant is
``X-Edge-Key``, the name under which the edge keeps the version's files, good until the end of the
second in which it was decided. No grant is no refusal: the edge then passes the request on, and
the API answers it as any other. A file the edge does not have it asks for with the key; what the
API answers to that, it may keep. Its log says what it sent (``aggregator/access/edge_log.py``).
"""

import json
import time
from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from aggregator.access.edge_log import EdgeLog
from aggregator.api.datasets import find_version
from aggregator.api.errors import ApiError
from aggregator.api.principal import principal
from aggregator.api.rates import Rates
from aggregator.catalog import Version

router = APIRouter()
PATH = "/edge/grant"
FOR, KEY, RECORD, LIMITED = "X-Edge-For", "X-Edge-Key", "X-Edge-Record", "X-Edge-Limited"
KEPT_S = 3600
MOST_BYTES = 2**20
"""Larger files nginx sends by ``X-Accel-Redirect``: to ask costs little beside sending them."""


@router.get(PATH, include_in_schema=False, response_class=Response)
async def grant(request: Request) -> Response:
    """Whether who asks may have the files of a version now, and what is written down if so."""
    decided_at = time.time()
    who = principal(request)
    parts = request.headers.get(FOR, "").split("/")
    if not who.name or len(parts) != 3:
        return Response()
    record: EdgeLog = request.app.state.edge_log
    if not record.kept:
        # The line this makes the edge write shows that it can.
        return Response(headers={RECORD: "null"})
    rates: Rates = request.app.state.rates
    if request.app.state.audit.full or not rates.ample(f"name {who.name}"):
        return Response()
    find = partial(find_version, request, *parts, reading=True)
    known = request.app.state.recall.knows(tuple(parts))
    try:
        version = find() if known else await run_in_threadpool(find)
    except ApiError:
        return Response()
    headers = {
        KEY: key(version),
        RECORD: json.dumps(
            {
                "principal": who.name,
                "token_id": who.token_id,
                "dataset": f"{version.namespace}/{version.name}",
                "number": version.number,
            }
        ),
        # Absolute: nginx counts whole seconds, and 1 of them from now may be nearly two.
        "X-Accel-Expires": f"@{int(decided_at)}",
    }
    if rates.counted:
        headers[LIMITED] = who.name
    return Response(headers=headers)


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
