import asyncio
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from aggregator.api.errors import ApiError
from aggregator.desk import events
from aggregator.desk.events import MOST_OF_ONE, MOST_STREAMS, Streams
from aggregator.home import AggregatorHome
from aggregator.lifecycle import transition
from tests.aggregator.desk.conftest import FIRST
from tests.aggregator.desk.runs import ended, snapshot, tell

STREAM = f"/api/desk/runs/{FIRST.digest()}/events"
SERVE = """
import sys
from pathlib import Path
import uvicorn
from aggregator.api import create_app
uvicorn.run(create_app(Path(sys.argv[1])), fd=int(sys.argv[2]), log_level="warning", ws="none",
            timeout_graceful_shutdown=30)
"""


def folder(home: AggregatorHome) -> Path:
    return home.run_folder(FIRST.digest())


def told(text: str) -> list[tuple[str, str]]:
    """(event, id) of what a stream sent, comments left out."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(re.findall(r"^(event|id): (.*)$", block, re.MULTILINE))
        if "event" in fields:
            found.append((fields["event"], fields.get("id", "")))
    return found


def over(home: AggregatorHome, *, rounds: int) -> list[int]:
    """A run that was aborted after some rounds: where each line of its journal ends."""
    run = folder(home)
    tell(run, *(ended(number, time=number) for number in range(1, rounds + 1)))
    transition(run, "aborted")
    lines = (run / "events.jsonl").read_bytes().splitlines(keepends=True)
    return [sum(map(len, lines[: k + 1])) for k in range(len(lines))]


def test_who_comes_back_is_told_what_was_missed(desk: TestClient, home: AggregatorHome) -> None:
    first, second, third = over(home, rounds=3)
    missed = desk.get(STREAM, headers={"Last-Event-ID": str(first)})
    assert missed.headers["Content-Type"].startswith("text/event-stream")
    assert missed.headers["Cache-Control"] == "no-store"
    assert told(missed.text) == [
        ("journal", str(second)),
        ("journal", str(third)),
        ("run", ""),
        ("end", ""),
    ]
    # The page says where it is by a parameter; the browser's header is newer.
    both = desk.get(f"{STREAM}?after=0", headers={"Last-Event-ID": str(second)})
    assert told(both.text)[0] == ("journal", str(third))
    assert len(told(desk.get(f"{STREAM}?after=0").text)) == 3 + 2
    # Without either: from now on. An id that is none of ours is none.
    for headers in ({}, {"Last-Event-ID": "some"}):
        assert told(desk.get(STREAM, headers=headers).text) == [("run", ""), ("end", "")]


def test_a_run_that_is_over_is_not_followed_for_ever(
    desk: TestClient, home: AggregatorHome
) -> None:
    *_, last = over(home, rounds=2)
    answer = desk.get(STREAM, headers={"Last-Event-ID": str(last)})
    assert (answer.status_code, answer.text) == (204, "")  # a browser does not ask again


def test_a_long_journal_comes_whole_and_in_order(
    desk: TestClient, home: AggregatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MOST_LINES", 7)
    places = over(home, rounds=30)
    ids = [place for name, place in told(desk.get(f"{STREAM}?after=0").text) if name == "journal"]
    assert ids == [str(place) for place in places]


def follow(run: Path, seconds: float, monkeypatch: pytest.MonkeyPatch, *acts: Any) -> str:
    """What a stream sends while ``acts`` happen one after the other, and it is let run."""
    monkeypatch.setattr(events, "POLL_S", 0.02)
    monkeypatch.setattr(events, "LONGEST_S", seconds)
    app = SimpleNamespace(state=SimpleNamespace(stopping=SimpleNamespace(is_set=lambda: False)))
    sent: list[bytes] = []

    async def read() -> None:
        pending = list(acts)
        async for piece in events._told(SimpleNamespace(app=app), run, 0):  # type: ignore[arg-type]
            sent.append(piece)
            if pending and b"data" in piece:
                pending.pop(0)()

    asyncio.run(read())
    return b"".join(sent).decode()


def test_what_happens_is_told_as_it_happens(
    home: AggregatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = folder(home)
    text = follow(
        run,
        5.0,
        monkeypatch,
        lambda: tell(run, ended(1, time=1)),
        lambda: snapshot(run, FIRST, 1),
        lambda: transition(run, "aborted"),
    )
    assert [name for name, _ in told(text)] == ["run", "journal", "run", "run", "end"]
    assert "retry: 2000" in text


def test_a_quiet_stream_lives_and_ends_in_time(
    home: AggregatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.1)
    begun = time.monotonic()
    text = follow(folder(home), 0.5, monkeypatch)
    assert 0.4 < time.monotonic() - begun < 3
    assert 2 <= text.count(": alive") <= 5
    assert [name for name, _ in told(text)] == ["run"]


def test_streams_are_bounded_and_the_refusal_says_what_to_do(
    desk: TestClient, home: AggregatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    over(home, rounds=1)
    full = Streams()
    for _ in range(MOST_OF_ONE):
        full.enter("dr-launch")
    monkeypatch.setattr(events, "streams", full)
    refused = desk.get(STREAM)
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "10")
    assert f"{MOST_OF_ONE} streams of yours are open" in refused.text
    full.leave("dr-launch")
    assert desk.get(STREAM).status_code == 200
    assert full.count == MOST_OF_ONE - 1, "one that has ended counts no more"
    for number in range(MOST_STREAMS - full.count):
        full.enter(f"other-{number}")
    refused = desk.get(STREAM)
    assert refused.status_code == 503 and "as many as this server holds" in refused.text
    with pytest.raises(ApiError):
        full.enter("anybody")


@pytest.fixture
def live(home: AggregatorHome, tokens: dict[str, str]) -> Iterator[tuple[httpx.Client, Any]]:
    """A client of a server in a process of its own, and that process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-c", SERVE, str(home.root), str(listener.fileno())]
        with subprocess.Popen(command, pass_fds=[listener.fileno()]) as server:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            header = {"Authorization": f"Bearer {tokens['launch:run']}"}
            with httpx.Client(base_url=url, headers=header, timeout=20) as client:
                yield client, server
            server.kill()


def test_streams_end_with_the_server_and_count_no_more_once_they_are_left(
    live: tuple[httpx.Client, Any], home: AggregatorHome
) -> None:
    client, server = live
    with ExitStack() as open_ones:
        for number in range(MOST_OF_ONE):
            answer = open_ones.enter_context(client.stream("GET", STREAM))
            assert answer.status_code == 200
            if number == 0:
                first = answer
        assert client.get(STREAM).status_code == 429
        # The API answers others all the while.
        assert client.get("/livez").status_code == 200
        first.close()
        deadline = time.monotonic() + 15
        while (again := client.send(client.build_request("GET", STREAM), stream=True)).is_error:
            again.close()
            assert time.monotonic() < deadline, "a stream that was left still counts"
            time.sleep(0.1)
        pieces = again.iter_text()
        text = next(pieces)
        while "event: run" not in text:
            text += next(pieces)
        begun = time.monotonic()
        server.send_signal(signal.SIGTERM)
        text += "".join(pieces)  # ends, and is not cut off
        again.close()
        assert [name for name, _ in told(text)] == ["run"]
    server.wait(timeout=25)
    assert time.monotonic() - begun < 20, "it would wait 30 s for streams that do not end"
