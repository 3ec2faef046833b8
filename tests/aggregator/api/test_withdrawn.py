from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from aggregator.catalog import Catalog

PLACES = (
    "/api/datasets/fedstill/ct-demo/revision/{}",
    "/api/datasets/fedstill/ct-demo/tree/{}",
    "/datasets/fedstill/ct-demo/resolve/{}/README.md",
)


def withdraw(home: Path, number: int, reason: str = "a site took back its consent: größer") -> None:
    catalog = Catalog(home / "catalog.sqlite")
    catalog.withdraw("fedstill", "ct-demo", number, reason)
    catalog.close()


@pytest.mark.parametrize("place", PLACES)
def test_a_withdrawn_version_is_gone_and_says_why(
    client: TestClient, home: Path, place: str
) -> None:
    commit = client.get("/api/datasets/fedstill/ct-demo/revision/v2").json()["sha"]
    withdraw(home, 2)
    for revision in ("v2", commit):
        answer = client.get(place.format(revision))
        assert answer.status_code == 410
        assert answer.headers["X-Error-Code"] == "RevisionWithdrawn"
        assert answer.headers["X-Error-Message"].endswith("consent: gr??er")
        assert answer.json()["error"].endswith(": a site took back its consent: größer")
        assert answer.json()["hint"]
    assert client.get(place.format("v1")).status_code == 200
    assert client.get(place.format("main")).status_code == 200


def test_main_skips_it(client: TestClient, home: Path) -> None:
    withdraw(home, 2)
    newest = client.get("/api/datasets/fedstill/ct-demo").json()
    assert newest["version"] == 1
    assert [(one["version"], one["withdrawn"]) for one in newest["versions"]] == [
        (1, None),
        (2, "a site took back its consent: größer"),
    ]
    assert [one["version"] for one in client.get("/api/datasets").json()["datasets"]] == [1]
    refs = client.get("/api/datasets/fedstill/ct-demo/refs").json()
    assert [tag["name"] for tag in refs["tags"]] == ["v1"]
    assert refs["branches"][0]["targetCommit"] == newest["sha"]


def test_a_dataset_without_a_version_left_is_gone(client: TestClient, home: Path) -> None:
    withdraw(home, 1, "the first reason")
    withdraw(home, 2)
    for path in ("", "/refs", "/tree/main"):
        answer = client.get(f"/api/datasets/fedstill/ct-demo{path}")
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (410, "RevisionWithdrawn")
        assert "größer" in answer.json()["error"]
    assert client.get("/api/datasets").json()["total"] == 0
    versions = client.get("/api/datasets/fedstill/ct-demo/versions").json()
    assert [one["withdrawn"] for one in versions["versions"]][1] == "the first reason"


def test_versions_come_by_pages(client: TestClient, home: Path) -> None:
    withdraw(home, 2, "why")
    page = client.get("/api/datasets/fedstill/ct-demo/versions").json()
    assert (page["total"], page["limit"], page["offset"]) == (2, 50, 0)
    assert [(one["version"], one["withdrawn"]) for one in page["versions"]] == [
        (2, "why"),
        (1, None),
    ]
    second = client.get("/api/datasets/fedstill/ct-demo/versions?offset=1&limit=1").json()
    assert [one["version"] for one in second["versions"]] == [1]
    for query in ("limit=0", "limit=101", "offset=-1", "page=2"):
        assert client.get(f"/api/datasets/fedstill/ct-demo/versions?{query}").status_code == 422
    assert client.get("/api/datasets/fedstill/none/versions").status_code == 404


def test_what_was_set_before_the_first_version_is_no_dataset_yet(
    client: TestClient, home: Path
) -> None:
    catalog = Catalog(home / "catalog.sqlite")
    catalog.configure("fedstill", "soon", visibility="private")
    catalog.close()
    for path in ("", "/versions", "/refs"):
        answer = client.get(f"/api/datasets/fedstill/soon{path}")
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (404, "RepoNotFound")


def test_a_name_that_is_no_ascii_is_a_404(client: TestClient) -> None:
    for path in (
        "/datasets/fedstill/ct-demo/resolve/main/世界",
        "/datasets/fedstill/ct-demo/resolve/größe/README.md",
        "/api/datasets/fedstill/%0a",
    ):
        assert client.get(path).status_code == 404
