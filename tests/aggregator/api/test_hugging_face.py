import warnings
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

PATHS = "/api/datasets/fedstill/ct-demo/paths-info/v2"


def test_paths_are_asked_by_form_or_json(client: TestClient) -> None:
    tree = client.get("/api/datasets/fedstill/ct-demo/tree/v2").json()
    second = [entry for entry in tree if entry["path"] == "second.txt"]
    assert len(second) == 1
    asked = ["second.txt", "second.txt", "absent", ""]
    by_form = client.post(PATHS, data={"paths": asked, "expand": "False"})
    assert (by_form.status_code, by_form.json()) == (200, second)
    assert client.post(PATHS, json={"paths": asked, "expand": True}).json() == second
    assert client.post(PATHS, data={"paths": [""]}).json() == []


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"json": {"paths": []}}, 422),
        ({"json": {"paths": [1]}}, 422),
        ({"json": {"paths": "README.md"}}, 422),
        ({"json": {"paths": ["a"], "path": "b"}}, 422),
        ({"json": ["paths"]}, 422),
        ({"content": b"paths=%ff\xff"}, 422),
        ({"json": {"paths": ["a"], "expand": 1}}, 422),
        ({"content": b"paths=a&expand=maybe"}, 422),
        ({"content": b""}, 422),
        ({"json": {"paths": ["a"] * 1001}}, 422),
        ({"content": b"paths=" + b"a" * 70_000}, 413),
    ],
)
def test_bodies_that_are_no_list_of_paths(
    client: TestClient, sent: dict[str, Any], status: int
) -> None:
    answer = client.post(PATHS, **sent)
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "hint"}


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("/api/datasets/fedstill/ct-demo/tree/v2/folder/below", "EntryNotFound"),
        ("/api/datasets/fedstill/ct-demo/tree/v9/folder", "RevisionNotFound"),
        ("/api/datasets/fedstill/absent/tree/v2/folder", "RepoNotFound"),
        ("/api/agent-harnesses", "EntryNotFound"),
        ("/datasets/fedstill/ct-demo/resolve/v2/ct-demo.py", "EntryNotFound"),
        ("/datasets/fedstill/ct-demo/resolve/v2/.huggingface.yaml", "EntryNotFound"),
        ("/datasets/fedstill/ct-demo/resolve/v2/dataset_infos.json", "EntryNotFound"),
        ("/api/datasets/fedstill/ct-demo/croissant", "EntryNotFound"),
        ("/api/datasets/fedstill/ct-demo/croissant?revision=v9", "RevisionNotFound"),
        ("/api/datasets/fedstill/absent/croissant", "RepoNotFound"),
    ],
)
def test_what_is_not_there_says_what(client: TestClient, address: str, code: str) -> None:
    answer = client.get(address)
    assert (answer.status_code, answer.headers["X-Error-Code"]) == (404, code)


def test_paths_of_a_dataset_that_is_not_there(client: TestClient) -> None:
    answer = client.post(PATHS.replace("ct-demo", "absent"), json={"paths": ["a"]})
    assert (answer.status_code, answer.headers["X-Error-Code"]) == (404, "RepoNotFound")
