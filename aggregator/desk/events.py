"""A run as a stream of Server-Sent Events, for pages and programs that follow it.

``journal``   a line of the run's journal, as it is there; its ``id`` is where the next one begins
``run``       that state, pairs, figures or gates have changed: the run is worth another look
``end``       nothing more will come

Who comes back with ``Last-Event-ID`` is told what it missed. A stream looks at the run's folder a
few times a second in a thread, holds neither file nor database open, and ends with the server.
"""

import asyncio
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from aggregator.access.principals import Principal
from aggregator.api.datasets import strict
from aggregator.api.errors import ApiError
from aggregator.api.models import UNREADABLE
from aggregator.chronicle import chronicle_of, lines_after
from aggregator.desk.finding import Digest, found_run
from aggregator.desk.session import reader
from aggregator.gates import GATES
from aggregator.hospital_table import EVALUATION
from aggregator.lifecycle import RunState, read_state
from aggregator.runs import RunError
from aggregator.snapshots import FOLDER
from aggregator.utility import UTILITY

POLL_S = 0.4
HEARTBEAT_S = 15.0
LONGEST_S = 120.0
"""A stream ends by then, and who follows it comes back: with a token that is still valid."""
RETRY_MS = 2000
MOST_LINES = 1000
"""Of the journal at a time."""
MOST_STREAMS, MOST_OF_ONE = 64, 8
"""Open at a time; of one principal."""
OVER = ("published", "aborted")
"""States after which nothing comes that has not been asked for."""

router = APIRouter(responses=UNREADABLE)


class Streams:
    """How many streams are open, and whose."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    def enter(self, who: str) -> None:
        """Counts one more; raises what refuses it."""
        with self._lock:
            if self._open[who] >= MOST_OF_ONE:
                raise ApiError(
                    429,
                    f"{MOST_OF_ONE} streams of yours are open",
                    "close other windows that show a run, or ask for the run itself now and then",
                    {"Retry-After": "10"},
                )
            if self._open.total() >= MOST_STREAMS:
                raise ApiError(
                    503,
                    f"{MOST_STREAMS} streams are open, as many as this server holds",
                    "try again in a moment, or ask for the run itself now and then",
                    {"Retry-After": "10"},
                )
            self._open[who] += 1

    def leave(self, who: str) -> None:
        """One less."""
        with self._lock:
            self._open[who] -= 1
            self._open += Counter()  # drops those who have none

    @property
    def count(self) -> int:
        """How many are open."""
        return self._open.total()


streams = Streams()


class EventStream(StreamingResponse):
    """The answer; leaves ``streams`` however it ends."""

    def __init__(self, content: AsyncIterator[bytes], *, leave: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(content, headers=headers, media_type="text/event-stream")
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends until the stream, the client or the server ends."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


@router.get(
    "/api/desk/runs/{digest}/events",
    dependencies=strict,
    response_class=Response,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        204: {"description": "the run has ended, and all of it was told before"},
    },
)
async def events(
    request: Request,
    who: Annotated[Principal, Depends(reader)],
    digest: Digest,
    after: Annotated[int | None, Query(ge=0, le=2**53)] = None,
    last_event_id: Annotated[str, Header(max_length=32)] = "",
) -> Response:
    """What happens in a run from ``Last-Event-ID`` or ``after`` on, else from now on."""
    run = await run_in_threadpool(found_run, request, digest)
    known = last_event_id.isascii() and last_event_id.isdecimal()
    at = int(last_event_id) if known else after
    if at is None:
        at = (await run_in_threadpool(chronicle_of, run)).bytes
    look = await run_in_threadpool(_look, run, at)
    if known and look.over and not look.lines:
        return Response(status_code=204)  # the browser does not come back
    streams.enter(who.name)
    return EventStream(_told(request, run, at), leave=lambda: streams.leave(who.name))


async def _told(request: Request, run: Path, at: int) -> AsyncIterator[bytes]:
    begun = beaten = time.monotonic()
    mark: Any = None
    yield format_sse_event(comment="what happens from here on", retry=RETRY_MS)
    while time.monotonic() - begun < LONGEST_S and not is_stopping(request):
        look = await run_in_threadpool(_look, run, at)
        news = [
            format_sse_event(event="journal", id=str(end), data_str=line)
            for end, line in look.lines
        ]
        at = look.lines[-1][0] if look.lines else at
        if look.mark != mark:
            mark = look.mark
            told = {"state": look.state.state, "round": look.state.round, "since": look.state.since}
            news.append(format_sse_event(event="run", data_str=json.dumps(told)))
        if look.over and not look.more:
            yield b"".join([*news, format_sse_event(event="end", data_str=look.state.state)])
            return
        if not news and time.monotonic() - beaten >= HEARTBEAT_S:
            news = [format_sse_event(comment="alive")]
        if news:
            beaten = time.monotonic()
            yield b"".join(news)
        if not look.more:
            await asyncio.sleep(POLL_S)


@dataclass(frozen=True)
class Look:
    """A run's folder at one moment."""

    lines: list[tuple[int, str]]
    more: bool
    """Whether there are lines left over."""
    state: RunState
    mark: Any
    """Differs where something else than the journal has changed."""

    @property
    def over(self) -> bool:
        """Whether nothing more comes by itself."""
        return self.state.state in OVER


def _look(run: Path, at: int) -> Look:
    try:
        state = read_state(run)
    except RunError:  # the page says what is damaged
        state = RunState(state="failed", since=0.0)
    lines = lines_after(run, at)
    changed = [_changed(run / name) for name in (UTILITY, EVALUATION, GATES, FOLDER)]
    return Look(lines[:MOST_LINES], len(lines) > MOST_LINES, state, (state, changed))


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def is_stopping(request: Request) -> bool:
    """Whether the server was told to stop: it waits for answers, so a stream has to end by itself.

    uvicorn tells applications only after the last answer, but its own handler of SIGTERM knows.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return bool(getattr(server, "should_exit", False) or request.app.state.stopping.is_set())
