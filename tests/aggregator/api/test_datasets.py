import base64
import hashlib
from datetime import datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from fastapi.testclient import TestClient

from aggregator.api import create_app


def test_health(client: TestClient) -> None:
    assert client.get("/livez").json() == {"alive": True}


def test_the_list_shows_the_newest_version(client: TestClient) -> None:
    answer = client.get("/api/datasets").json()
    assert (answer["total"], answer["limit"], answer["offset"]) == (1, 50, 0)
    (one,) = answer["datasets"]
    assert (one["id"], one["version"], one["dp"]) == ("fedstill/ct-demo", 2, None)
    assert one["sha"] == one["digest"][:40]
    datetime.strptime(one["createdAt"], "%Y-%m-%dT%H:%M:%S.%fZ")  # as huggingface_hub reads it
    assert client.get("/api/datasets?offset=1").json()["datasets"] == []


def test_detail_has_files_and_versions(client: TestClient) -> None:
    newest = client.get("/api/datasets/fedstill/ct-demo").json()
    assert [one["version"] for one in newest["versions"]] == [1, 2]
    siblings = {file["rfilename"]: file for file in newest["siblings"]}
    assert siblings["second.txt"]["sha256"] == hashlib.sha256(b"second").hexdigest()
    assert siblings["second.txt"]["size"] == 6
    first = client.get("/api/datasets/fedstill/ct-demo/revision/v1").json()
    assert "second.txt" not in {file["rfilename"] for file in first["siblings"]}
    by_commit = client.get(f"/api/datasets/fedstill/ct-demo/revision/{first['sha']}").json()
    assert by_commit == first


def test_tree_and_refs(client: TestClient) -> None:
    tree = client.get("/api/datasets/fedstill/ct-demo/tree/v1?recursive=true&expand=false").json()
    readme = next(entry for entry in tree if entry["path"] == "README.md")
    digest = hashlib.sha256("# größe\n".encode()).hexdigest()
    assert readme["lfs"]["oid"] == digest
    assert readme["size"] == 10
    refs = client.get("/api/datasets/fedstill/ct-demo/refs").json()
    assert [tag["name"] for tag in refs["tags"]] == ["v1", "v2"]
    assert refs["branches"][0]["targetCommit"] == refs["tags"][1]["targetCommit"]


def test_the_publisher_names_its_key(client: TestClient, home: Path) -> None:
    answer = client.get("/api/publisher").json()
    pem = (home / "keys" / "release.pub").read_bytes()
    raw = serialization.load_pem_public_key(pem).public_bytes_raw()  # type: ignore[union-attr]
    assert base64.b64decode(answer["key"]) == raw
    assert answer["key_id"] == hashlib.sha256(raw).hexdigest()


def test_an_empty_home_serves_an_empty_list(tmp_path: Path) -> None:
    with TestClient(create_app(tmp_path)) as client:
        assert client.get("/api/datasets").json()["datasets"] == []
        assert client.get("/api/publisher").status_code == 503


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/api/datasets/fedstill/none", "RepoNotFound"),
        ("/api/datasets/other/ct-demo", "RepoNotFound"),
        ("/api/datasets/fedstill/ct-demo/revision/v9", "RevisionNotFound"),
        ("/api/datasets/fedstill/ct-demo/revision/nonsense", "RevisionNotFound"),
        ("/api/agent-harnesses", "EntryNotFound"),
        ("/nothing", "EntryNotFound"),
    ],
)
def test_what_is_not_there(client: TestClient, path: str, code: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.headers["X-Error-Code"] == code
    assert set(answer.json()) == {"error", "hint"}


@pytest.mark.parametrize(
    "path",
    [
        "/api/datasets?page=2",
        "/api/datasets?limit=0",
        "/api/datasets?limit=101",
        "/api/datasets?limit=x",
        "/api/datasets?offset=-1",
        "/api/datasets/fedstill/ct-demo?full=true",
        "/readyz?deep=1",
        "/datasets/fedstill/ct-demo/resolve/main/README.md?download=true",
        "/api/datasets/" + "a" * 64 + "/ct-demo",
        "/datasets/fedstill/ct-demo/resolve/main/" + "a" * 257,
    ],
)
def test_what_a_route_does_not_take(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 422
    assert set(answer.json()) == {"error", "hint"}


def test_nothing_can_be_written(client: TestClient) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for path in ("/api/datasets", "/datasets/fedstill/ct-demo/resolve/main/README.md"):
            assert client.request(method, path).status_code == 405


def test_an_internal_error_says_nothing(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr("aggregator.catalog.Catalog.datasets", fail)
    answer = client.get("/api/datasets")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert set(answer.json()) == {"error", "hint"}
