"""The edge as it is shipped, answering for small files by itself: nothing changes but the speed."""

import contextlib
import http.client
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from aggregator.access.audit import Audit
from aggregator.access.tokens import Tokens
from aggregator.catalog import Catalog
from tests.aggregator.access.conftest import make_home, make_tokens
from tests.aggregator.access.edge import Edge, edge, start_nginx
from tests.aggregator.access.test_elsewhere import DOWNLOAD
from tests.aggregator.access.test_matrix import MATRIX, bearer, expected

FILE = "README.md"
ROUTE = "GET /datasets/{namespace}/{name}/resolve/{revision}/{path:path}"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """One for the tests that leave it as it was, but for tokens and datasets of their own."""
    folder = tmp_path_factory.mktemp("edge")
    with edge(make_home(folder / "home"), folder / "edge") as started:
        yield started


@pytest.fixture(scope="module")
def tokens(running: Edge) -> dict[str, str]:
    return make_tokens(running.home)


def token_of(running: Edge, name: str) -> str:
    """A new token for all datasets."""
    catalog = Catalog(running.home / "catalog.sqlite")
    try:
        return Tokens(catalog.database).create(name, scopes=["read:dataset"])[0]
    finally:
        catalog.close()


def path_of(dataset: str, file: str = FILE, revision: str = "main") -> str:
    return f"/datasets/fedstill/{dataset}/resolve/{revision}/{file}"


def warm(client: httpx.Client, running: Edge, path: str) -> None:
    """Asks until the edge answers by itself."""
    deadline = time.monotonic() + 20
    before = len(running.lines())
    while not any("\tHIT\t" in line for line in running.lines()[before:]):
        assert client.get(path).status_code == 200
        assert time.monotonic() < deadline, (running.settings / "error.log").read_text()
        time.sleep(0.1)


def moments(home: Path) -> list[int]:
    """When what is in the trail of downloads was sent, in milliseconds."""
    catalog = Catalog(home / "catalog.sqlite")
    try:
        newest = Audit(catalog.database).newest(limit=100_000)
    finally:
        catalog.close()
    return [round(datetime.fromisoformat(one.at).timestamp() * 1000) for one in newest]


def shape(answer: httpx.Response) -> tuple[int, bytes, list[tuple[str, str]]]:
    """Of an answer, all that is not of the connection."""
    own = ("date", "server", "connection", "accept-ranges")
    headers = sorted((k, v) for k, v in answer.headers.multi_items() if k not in own)
    return answer.status_code, answer.content, headers


def test_everybody_gets_from_the_edge_what_they_get_from_the_api(
    running: Edge, tokens: dict[str, str], tmp_path: Path
) -> None:
    home = running.home
    with httpx.Client(base_url=running.url) as client:
        client.headers.update(bearer(tokens["named"]))
        warm(client, running, path_of("private"))
        del client.headers["Authorization"]
        before = len(running.lines())
        for role, token in tokens.items():
            for dataset in ("public", "gated", "private", "absent"):
                direct = {
                    method: running.asked(method, path_of(dataset), headers=bearer(token))
                    for method in ("GET", "HEAD")
                }
                for method in ("GET", "HEAD", "GET", "HEAD", "GET"):
                    answer = client.request(method, path_of(dataset), headers=bearer(token))
                    status, code = expected(MATRIX[ROUTE], role, dataset)
                    got = (answer.status_code, answer.headers.get("X-Error-Code", ""))
                    assert got == (status, code), (role, dataset, method)
                    assert shape(answer) == shape(direct[method]), (role, dataset, method)
        hits = [line for line in running.lines()[before:] if "\tHIT\t" in line]
        assert len(hits) > 30  # many of these came from the edge, and none by others than:
        names = {json.loads(line.split("\t")[6])["principal"] for line in hits}
        assert names == {"reader", "other", "not-accepted", "accepted", "named", "admin"} | (
            names & {"no-scope", "launch"}  # to whom the public dataset is open as to everybody
        )

        # What is asked in another way is answered by the API, whatever the edge has.
        client.headers.update(bearer(tokens["reader"]))
        etag = client.get(path_of("private")).headers["ETag"]
        before = len([line for line in running.lines() if "\tHIT\t" in line])
        for method, path, headers in (
            ("GET", path_of("private"), {"Range": "bytes=2-4"}),
            ("HEAD", path_of("private"), {"Range": "bytes=2-4"}),
            ("GET", path_of("private"), {"Range": "bytes=0-1,3-4"}),
            ("GET", path_of("private"), {"Range": "bytes=99-"}),
            ("GET", path_of("private"), {"Range": "bytes=2-4", "If-Range": etag}),
            ("GET", path_of("private"), {"If-None-Match": etag}),
            ("GET", path_of("private"), {"If-Match": '"other"'}),
            ("GET", path_of("private"), {"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"}),
            ("GET", path_of("private") + "?download=true", {}),
            ("GET", path_of("private", "READM%45.md"), {}),
            ("GET", path_of("private", "absent.bin"), {}),
            ("GET", path_of("private", revision="v9"), {}),
        ):
            direct_one = running.asked(method, path, headers={**client.headers, **headers})
            assert shape(client.request(method, path, headers=headers)) == shape(direct_one), path
        assert len([line for line in running.lines() if "\tHIT\t" in line]) == before
        # Nobody gets in by the edge's own words.
        key = {"X-Edge-Key": "x", "X-Edge-For": "fedstill/private/main", "X-Edge-Record": "null"}
        assert client.get("/edge/grant", headers=key).status_code == 404
        assert client.post(path_of("private")).status_code == 403
        for _ in range(2):
            answer = client.get(path_of("private"), headers={**key, **bearer(tokens["other"])})
            assert answer.status_code == 404

        # A version that is withdrawn is so within the second.
        assert client.get(path_of("public")).status_code == 200
        catalog = Catalog(home / "catalog.sqlite")
        catalog.withdraw("fedstill", "public", 1, reason="a patient asked")
        withdrawn = time.monotonic()
        asked = withdrawn
        while client.get(path_of("public", revision="v1")).status_code != 410:
            assert asked - withdrawn < 1.0
            asked = time.monotonic()
        catalog.close()

        # Hugging Face's client, unmodified.
        env = {**os.environ, "HF_ENDPOINT": running.url, "HF_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", DOWNLOAD, tokens["accepted"]],
            env={**env, "HF_HUB_DISABLE_TELEMETRY": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert Path(done.stdout.strip()).read_bytes() == bytes(range(256)) * 8000

        # Of tokens the edge's files have half.
        kept = b"".join(
            file.read_bytes()
            for folder in (running.settings / "tmp", running.log)
            for file in folder.rglob("*")
            if file.is_file()
        )
        assert b"\nKEY: " in kept
        for token in filter(None, tokens.values()):
            assert token.encode() not in kept and token[-21:].encode() not in kept
        assert any(token[5:27].encode() in kept for token in filter(None, tokens.values()))


def seconds_until_refused(running: Edge) -> float:
    """From the revocation of a token that downloads all the time."""
    path = path_of("private")
    headers = bearer(token_of(running, "leaver"))
    with httpx.Client(base_url=running.url, headers=headers) as client:
        warm(client, running, path)
        catalog = Catalog(running.home / "catalog.sqlite")
        # At the start of a second, which is the worst moment.
        while not 0.02 < time.time() % 1 < 0.1:
            assert client.get(path).status_code == 200
        Tokens(catalog.database).revoke("leaver")
        revoked = asked = last = time.monotonic()
        catalog.close()
        while (answer := client.get(path)).status_code == 200:
            last, asked = asked, time.monotonic()
            assert last - revoked < 10
    assert (answer.status_code, answer.headers["X-Error-Code"]) == (401, "InvalidToken")
    return last - revoked  # when it was last asked with success


def test_a_revoked_token_ends_within_a_second_at_the_edge(running: Edge) -> None:
    assert seconds_until_refused(running) < 1.0


def test_that_a_token_ends_is_seen_to_depend_on_the_grants_moment(
    home: Path, tmp_path: Path
) -> None:
    """The positive control: with grants of three seconds the same measurement says so."""
    longer = {
        "proxy_cache edge_grants;": "proxy_cache edge_grants; proxy_cache_valid 200 3s;"
        " proxy_ignore_headers X-Accel-Expires Cache-Control Expires Vary Set-Cookie;",
        'proxy_cache_key "$edge_token $edge_version";\n'
        "    proxy_ignore_headers Cache-Control Expires Vary Set-Cookie;": (
            'proxy_cache_key "$edge_token $edge_version";'
        ),
    }
    with edge(home, tmp_path / "edge", changes=longer) as running:
        assert seconds_until_refused(running) > 1.2


def test_kills_lose_no_line_and_take_none_twice(running: Edge) -> None:
    path, home = path_of("private"), running.home
    headers = bearer(token_of(running, "patient"))
    with httpx.Client(base_url=running.url, headers=headers) as client:
        warm(client, running, path)
        time.sleep(1.5)
        before, lines = len(moments(home)), len(running.lines())
        tried = answered = 0

        def ask_on(seconds: float) -> None:
            nonlocal answered, tried
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                tried += 1
                with contextlib.suppress(httpx.TransportError):
                    answered += client.get(path, timeout=0.5).status_code == 200

        ask_on(0.6)
        running.api.send_signal(signal.SIGKILL)
        running.api.wait()
        ask_on(0.3)  # what was granted is good to the end of the second, no longer
        running.start_api()
        running.asked("GET", "/livez")
        ask_on(1.0)
        for child in running.workers:
            os.kill(child, signal.SIGKILL)  # nginx starts them again
        ask_on(0.5)
        workers = running.workers
        running.nginx.send_signal(signal.SIGKILL)
        running.nginx.wait()
        for child in workers:
            _end(child)
        running.nginx = start_nginx(running.settings, urlsplit(running.url).port or 0)
        ask_on(0.8)
        time.sleep(2.0)
        hits = Counter(
            round(float(line.split("\t")[0]) * 1000)
            for line in running.lines()[lines:]
            if "\tGET\tHIT\t200\t" in line
        )
        taken = moments(home)
        assert hits.total() > 50
        assert not hits - Counter(taken)  # none is lost
        assert len(taken) - before <= tried  # none is taken twice
        # Of answers that came whole, two at most were not written: nginx was killed in between.
        assert len(taken) - before >= answered - 2


def test_the_limit_holds_whoever_answers(home: Path, tmp_path: Path) -> None:
    limit = 2200
    path = path_of("private")
    codes: list[tuple[int, dict[str, str], bytes]] = []
    with edge(home, tmp_path / "edge", requests_a_minute=limit) as running:
        headers = bearer(token_of(running, "many"))

        def ask(requests: int) -> None:
            address = urlsplit(running.url)
            connection = http.client.HTTPConnection(address.hostname or "", address.port)
            for _ in range(requests):
                connection.request("GET", path, headers=headers)
                answer = connection.getresponse()
                codes.append((answer.status, dict(answer.getheaders()), answer.read()))
                if answer.status == 429:
                    break
            connection.close()

        with httpx.Client(base_url=running.url, headers=headers) as client:
            warm(client, running, path)
        askers = [threading.Thread(target=ask, args=(limit,)) for _ in range(3)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
        hits = sum("\tHIT\t" in line for line in running.lines())
        refused = running.asked("GET", path, headers=headers)
    let_through = sum(status == 200 for status, _, _ in codes)
    assert hits > 0 and let_through <= limit
    assert let_through > 0.9 * limit  # and what may pass, does
    status, told, body = codes[-1]
    assert (status, body) == (429, refused.content)
    assert told["retry-after"] == refused.headers["Retry-After"] == "1"


def test_what_cannot_be_written_down_is_not_answered_by_the_edge(
    running: Edge, tmp_path: Path
) -> None:
    path, home = path_of("private"), running.home
    headers = bearer(token_of(running, "diligent"))
    with httpx.Client(base_url=running.url, headers=headers) as client:
        # nginx finds no folder to write into: the API sees no line, and grants nothing.
        running.log.rename(tmp_path / "elsewhere")
        time.sleep(1.0)  # what was granted has ended
        before = len(moments(home))
        for _ in range(8):
            assert client.get(path).status_code == 200
            time.sleep(0.1)
        time.sleep(1.0)
        assert len(moments(home)) - before == 8  # the API sent them
        (tmp_path / "elsewhere").rename(running.log)
        warm(client, running, path)

        # The trail cannot be written: after 3 s the API answers, and nothing is lost.
        time.sleep(0.8)
        before, lines = len(moments(home)), len(running.lines())
        with sqlite3.connect(home / "catalog.sqlite", isolation_level=None) as locked:
            locked.execute("BEGIN IMMEDIATE")
            deadline = time.monotonic() + 3.3
            asked = 0
            while time.monotonic() < deadline:
                asked += client.get(path).status_code == 200
                time.sleep(0.02)
            after = len(running.lines())
            asked += client.get(path).status_code == 200
            locked.execute("ROLLBACK")
        assert any("\tHIT\t" in line for line in running.lines()[lines:])
        assert not any("\tHIT\t" in line for line in running.lines()[after:])
        deadline = time.monotonic() + 5
        while len(moments(home)) - before != asked:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    while Path(f"/proc/{pid}/stat").exists():
        time.sleep(0.01)
