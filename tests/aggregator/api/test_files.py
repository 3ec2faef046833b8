import hashlib
import shutil
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

CONTENT = bytes(range(256)) * 2000
URL = "/datasets/fedstill/ct-demo/resolve/main/pairs.safetensors"
ETAG = f'"{hashlib.sha256(CONTENT).hexdigest()}"'


def test_get_and_head_say_the_same(client: TestClient) -> None:
    got, head = client.get(URL), client.head(URL)
    assert got.status_code == head.status_code == 200
    assert got.content == CONTENT
    assert head.content == b""
    assert got.headers == head.headers
    assert got.headers["ETag"] == ETAG
    assert got.headers["Content-Length"] == str(len(CONTENT))
    assert got.headers["Accept-Ranges"] == "bytes"
    assert "Content-Encoding" not in got.headers
    assert len(got.headers["X-Repo-Commit"]) == 40


def test_revisions_resolve_to_their_own_commit(client: TestClient) -> None:
    commits = {
        revision: client.head(URL.replace("main", revision)).headers["X-Repo-Commit"]
        for revision in ("main", "v1", "v2")
    }
    assert commits["main"] == commits["v2"] != commits["v1"]
    by_commit = client.get(URL.replace("main", commits["v1"]))
    assert by_commit.headers["X-Repo-Commit"] == commits["v1"]
    manifest = client.get("/datasets/fedstill/ct-demo/resolve/v1/MANIFEST.json")
    assert hashlib.sha256(manifest.content).hexdigest()[:40] == commits["v1"]


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=511999-", 511_999, 512_000),
        ("bytes=300000-400000", 300_000, 400_001),
        ("bytes=-10", 511_990, 512_000),
        ("bytes=-999999999", 0, 512_000),
        ("bytes=511000-999999999", 511_000, 512_000),
    ],
)
def test_one_range(client: TestClient, wanted: str, start: int, end: int) -> None:
    answer = client.get(URL, headers={"Range": wanted})
    assert answer.status_code == 206
    assert answer.content == CONTENT[start:end]
    assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/512000"
    assert answer.headers["Content-Length"] == str(end - start)


@pytest.mark.parametrize(
    "wanted", ["bytes=512000-", "bytes=600000-700000", "bytes=-0", "bytes=0-1,5-6"]
)
def test_ranges_that_cannot_be_met(client: TestClient, wanted: str) -> None:
    answer = client.get(URL, headers={"Range": wanted})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == "bytes */512000"


@pytest.mark.parametrize(
    "wanted",
    [
        "lines=1-2",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=9-3",
        "bytes",
        "bytes=1-2-3",
        "bytes=" + "9" * 40 + "-",
    ],
)
def test_ranges_that_make_no_sense_are_ignored(client: TestClient, wanted: str) -> None:
    answer = client.get(URL, headers={"Range": wanted})
    assert answer.status_code == 200
    assert len(answer.content) == 512_000


def test_many_ranges_are_refused_at_once(client: TestClient) -> None:
    wanted = "bytes=" + ",".join(f"{n}-{n}" for n in range(8000))
    assert client.get(URL, headers={"Range": wanted}).status_code == 416


def test_a_range_of_other_content_is_the_whole(client: TestClient) -> None:
    stale = {"Range": "bytes=5-", "If-Range": '"' + "0" * 64 + '"'}
    assert client.get(URL, headers=stale).status_code == 200
    fresh = {"Range": "bytes=5-", "If-Range": ETAG}
    assert client.get(URL, headers=fresh).status_code == 206


@pytest.mark.parametrize("tags", [ETAG, f"W/{ETAG}", f'"x", {ETAG}', "*"])
def test_known_content_is_not_sent_again(client: TestClient, tags: str) -> None:
    answer = client.get(URL, headers={"If-None-Match": tags})
    assert answer.status_code == 304
    assert answer.content == b""
    assert answer.headers["ETag"] == ETAG
    assert "X-Repo-Commit" in answer.headers


def test_other_content_is_sent(client: TestClient) -> None:
    assert client.get(URL, headers={"If-None-Match": '"x"'}).status_code == 200


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("fedstill/none/resolve/main/README.md", "RepoNotFound"),
        ("fedstill/ct-demo/resolve/v9/README.md", "RevisionNotFound"),
        ("fedstill/ct-demo/resolve/main/ct-demo.py", "EntryNotFound"),
        ("fedstill/ct-demo/resolve/main/.huggingface.yaml", "EntryNotFound"),
        ("fedstill/ct-demo/resolve/main/dataset_infos.json", "EntryNotFound"),
        ("fedstill/ct-demo/resolve/main/%2e%2e/%2e%2e/keys/release.key", "EntryNotFound"),
        ("fedstill/ct-demo/resolve/main/..%2f..%2fcatalog.sqlite", "EntryNotFound"),
        ("fedstill/ct-demo/resolve/v1/second.txt", "EntryNotFound"),
        ("fedstill/ct-demo/resolve/main/%00", "EntryNotFound"),
    ],
)
def test_what_is_not_there(client: TestClient, path: str, code: str) -> None:
    for answer in (client.get(f"/datasets/{path}"), client.head(f"/datasets/{path}")):
        assert answer.status_code == 404
        assert answer.headers["X-Error-Code"] == code


def test_an_empty_file(home: Path, client: TestClient) -> None:
    from aggregator.release import publish
    from shared.contract import RunContract
    from shared.release.keys import read_private_key

    key = read_private_key(home / "keys" / "release.key")
    publish(home=home, contract=RunContract(name="empty"), files={"nothing": b""}, key=key)
    url = "/datasets/fedstill/empty/resolve/main/nothing"
    assert client.get(url).headers["Content-Length"] == "0"
    assert client.get(url, headers={"Range": "bytes=0-"}).status_code == 416


def test_a_lost_blob_is_an_error_not_a_short_file(home: Path, client: TestClient) -> None:
    shutil.rmtree(home / "blobs")
    answer = client.get(URL)
    assert answer.status_code == 500
    assert "pairs.safetensors" in answer.json()["error"]
