"""Errors as pages for people, as JSON for programs: of one status, with the same headers."""

import pytest
from fastapi.testclient import TestClient

WITHDRAWN = "/datasets/fedstill/public/v1"
BROWSER = "text/html,application/xhtml+xml,*/*;q=0.8"


def test_a_withdrawn_version_gives_its_reason_and_leads_on(client: TestClient) -> None:
    person = client.get(WITHDRAWN, headers={"Accept": BROWSER})
    program = client.get(WITHDRAWN, headers={"Accept": "application/json"})
    assert person.status_code == program.status_code == 410
    for answer in (person, program):
        assert answer.headers["X-Error-Code"] == "RevisionWithdrawn"
        assert "Accept" in answer.headers["Vary"]
    assert person.headers["Content-Type"].startswith("text/html")
    assert "This version was withdrawn" in person.text
    assert "noise &lt;script&gt;planted()&lt;/script&gt;" in person.text
    assert "<script>" not in person.text
    assert 'href="/datasets/fedstill/public"' in person.text
    assert set(program.json()) == {"error", "hint"}
    assert "<script>planted()</script>" in program.json()["error"]


@pytest.mark.parametrize(
    ("path", "accept", "kind"),
    [
        ("/datasets/a/b", BROWSER, "text/html; charset=utf-8"),
        ("/datasets/a/b/resolve/main/c", BROWSER, "text/html; charset=utf-8"),
        ("/nowhere", BROWSER, "text/html; charset=utf-8"),
        ("/nowhere", "*/*", "application/json"),
        ("/datasets/a/b/resolve/main/c", "*/*", "application/json"),
        ("/datasets/a/b", "", "application/json"),
        ("/api/datasets/a/b", BROWSER, "application/json"),
        ("/api/nowhere", BROWSER, "application/json"),
    ],
)
def test_who_asks_decides_the_form(client: TestClient, path: str, accept: str, kind: str) -> None:
    answer = client.get(path, headers={"Accept": accept})
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == kind


def test_what_changes_nothing_alone_is_answered_by_a_page(client: TestClient) -> None:
    answer = client.post("/", headers={"Accept": BROWSER})
    assert answer.status_code == 405
    assert answer.headers["Content-Type"] == "application/json"


def test_a_gated_file_says_what_it_needs(client: TestClient) -> None:
    answer = client.get("/datasets/fedstill/gated/resolve/main/pairs.safetensors")
    assert answer.status_code == 401
    assert answer.headers["X-Error-Code"] == "GatedRepo"
    assert "needs a token" in answer.text


def test_a_token_that_is_not_valid_is_refused_with_a_page(client: TestClient) -> None:
    answer = client.get("/", headers={"Authorization": "Bearer fdst_wrong"})
    assert answer.status_code == 401
    assert "A valid token is needed" in answer.text
    assert "script-src" in answer.headers["Content-Security-Policy"]
