"""Every route, asked by everybody for every dataset: who may have what, cell by cell."""

from dataclasses import dataclass
from typing import Any

from fastapi.testclient import TestClient
from starlette.routing import Route

DATASETS = ("public", "gated", "private", "absent")
ENDED = ("revoked", "expired")
PRIVATE_READERS = ("reader", "named", "admin")
GATED_READERS = ("accepted", "admin")
GATED_TOKENS = ("reader", "not accepted", "accepted", "admin")
DESK_TOKENS = ("launch", "admin")
AGREEMENT = "/api/datasets/{namespace}/{name}/agreement"


@dataclass(frozen=True)
class Cell:
    """How a route decides, and what it is asked with."""

    kind: str
    """``open``: no dataset; ``card``: whoever may see the dataset; ``file``: who may read it;
    ``agreement``, ``accept``; ``never``: a 404 for all who may see the dataset; ``desk``: who has
    a scope that opens the desk."""
    json: Any = None
    optional: bool = False
    """What it answers may be missing in the release of these tests."""
    status: int = 200
    """Of an answer to who may."""


MATRIX = {
    "GET /livez": Cell("open"),
    "GET /readyz": Cell("open"),
    "GET /openapi.json": Cell("open"),
    "GET /api/publisher": Cell("open"),
    "GET /api/publisher/keys": Cell("open"),
    "GET /api/publisher/minisign.pub": Cell("open"),
    "GET /api/datasets": Cell("open"),
    "GET /api/agent-harnesses": Cell("open", optional=True),
    "GET /": Cell("open"),
    "GET /desk/login": Cell("open"),
    "POST /desk/login": Cell("open", status=401),
    "POST /desk/logout": Cell("desk"),
    "GET /desk": Cell("desk"),
    "GET /api/desk/runs": Cell("desk"),
    "GET /desk/sites": Cell("desk"),
    "GET /api/desk/sites": Cell("desk"),
    "GET /desk/runs/{digest}": Cell("desk", status=404),
    "GET /api/desk/runs/{digest}": Cell("desk", status=404),
    "GET /api/desk/runs/{digest}/events": Cell("desk", status=404),
    "GET /api/desk/runs/{digest}/pairs": Cell("desk", status=404),
    "GET /api/desk/runs/{digest}/pairs/{round}": Cell("desk", status=404),
    "GET /api/desk/runs/{digest}/pairs/{round}.png": Cell("desk", status=404),
    "POST /desk/runs/{digest}/{action}": Cell("desk", status=404),
    "POST /api/desk/runs/{digest}/{action}": Cell("desk", status=404),
    "GET /desk/launch": Cell("desk"),
    "POST /desk/launch": Cell("desk", status=422),
    "POST /api/desk/check": Cell("desk", json={"toml": ""}),
    "POST /api/desk/dry-run": Cell("desk", json={"toml": ""}, status=409),
    "POST /api/desk/launch": Cell("desk", json={"toml": ""}, status=409),
    "GET /desk/compare": Cell("desk"),
    "GET /api/desk/compare": Cell("desk", status=422),
    "GET /desk/audit": Cell("desk"),
    "GET /api/desk/audit": Cell("desk"),
    "GET /static/{name}": Cell("open", optional=True),
    "HEAD /static/{name}": Cell("open", optional=True),
    "GET /api/datasets/{namespace}/{name}": Cell("card"),
    "GET /api/datasets/{namespace}/{name}/revision/{revision}": Cell("card"),
    "GET /api/datasets/{namespace}/{name}/versions": Cell("card"),
    "GET /api/datasets/{namespace}/{name}/tree/{revision}": Cell("card"),
    "GET /api/datasets/{namespace}/{name}/tree/{revision}/{folder:path}": Cell("never"),
    "POST /api/datasets/{namespace}/{name}/paths-info/{revision}": Cell(
        "card", json={"paths": ["README.md"]}
    ),
    "GET /api/datasets/{namespace}/{name}/refs": Cell("card"),
    "GET /api/datasets/{namespace}/{name}/head": Cell("card"),
    "GET /api/datasets/{namespace}/{name}/croissant": Cell("card", optional=True),
    "GET /datasets/{namespace}/{name}": Cell("card"),
    "GET /datasets/{namespace}/{name}/v{number}": Cell("card"),
    "GET /datasets/{namespace}/{name}/resolve/{revision}/{path:path}": Cell("file"),
    "HEAD /datasets/{namespace}/{name}/resolve/{revision}/{path:path}": Cell("file"),
    f"GET {AGREEMENT}": Cell("agreement"),
    f"POST {AGREEMENT}": Cell("accept", json={"version": 1, "accept": True}),
}


def bearer(token: str) -> dict[str, str]:
    """The header of a token; none for an empty one."""
    return {"Authorization": f"Bearer {token}"} if token else {}


def expected(cell: Cell, role: str, dataset: str) -> tuple[int, str]:
    """Status and ``X-Error-Code``, from the promise; nothing here asks the code that decides."""
    if role in ENDED:
        return 401, "InvalidToken"
    if cell.kind == "desk" and role not in DESK_TOKENS:
        return (401 if role == "anonymous" else 403), ""
    if cell.kind in ("open", "desk"):
        return cell.status, ""
    if dataset == "absent" or (dataset == "private" and role not in PRIVATE_READERS):
        return 404, "RepoNotFound"
    if cell.kind == "never" or (cell.kind in ("agreement", "accept") and dataset != "gated"):
        return 404, "EntryNotFound"
    if dataset == "gated" and cell.kind in ("file", "accept"):
        if role == "anonymous":
            return 401, "GatedRepo"
        if role not in (GATED_READERS if cell.kind == "file" else GATED_TOKENS):
            return 403, "GatedRepo"
    return 200, ""


def address(template: str, dataset: str, revision: str = "main") -> str:
    """A path of a route, of a dataset."""
    parts = {
        "namespace": "fedstill",
        "name": dataset,
        "revision": revision,
        "number": "1",
        "action": "pause",
    }
    parts |= {"path:path": "README.md", "folder:path": "some"}
    parts |= {"digest": "0" * 64, "round": "1"}
    for name, value in parts.items():
        template = template.replace(f"{{{name}}}", value)
    return template


def routes(client: TestClient) -> list[str]:
    """``METHOD path`` of every route of the app."""
    app: Any = client.app
    found = []
    pending = list(app.routes)
    while pending:
        route = pending.pop()
        if isinstance(route, Route):
            # Starlette adds HEAD to what is not FastAPI's; it is the same function.
            found += [f"{method} {route.path}" for method in sorted(route.methods or ())]
        else:
            nested = getattr(route, "routes", None)
            router = getattr(route, "original_router", None)
            assert nested or router, f"a route this test cannot look into: {route}"
            pending += list(nested or router.routes)
    return [one for one in found if one != "HEAD /openapi.json"]


def test_every_route_is_in_the_matrix(client: TestClient) -> None:
    found = routes(client)
    assert len(found) >= 12
    missing = sorted(set(found) - set(MATRIX))
    assert not missing, (
        f"new routes {missing}: add each to MATRIX with the kind of its decision; one that names a"
        " dataset finds it by find_dataset or find_version (reading=True where it gives content)"
    )


def test_every_cell(client: TestClient, tokens: dict[str, str]) -> None:
    wrong, cells = [], 0
    for route in routes(client):
        method, _, template = route.partition(" ")
        cell = MATRIX[route]
        for role, token in tokens.items():
            if role == "not accepted" and cell.kind == "accept":
                continue  # it would no longer be what it is: test_gated.py has it
            if role == "reader" and cell.kind == "accept":
                continue
            for dataset in DATASETS if "{namespace}" in template else DATASETS[:1]:
                path = address(template, dataset)
                answer = client.request(method, path, headers=bearer(token), json=cell.json)
                status, code = expected(cell, role, dataset)
                got = (answer.status_code, answer.headers.get("X-Error-Code", ""))
                if cell.optional and status == 200 and got[0] == 404 and got[1] != "RepoNotFound":
                    got = (200, "")
                cells += 1
                if got != (status, code):
                    wrong.append(f"{route} of {dataset} by {role}: {got}, not {(status, code)}")
    assert not wrong, "\n".join(wrong)
    assert cells > 400


def test_absent_and_hidden_are_the_same(client: TestClient, tokens: dict[str, str]) -> None:
    """Whatever is asked of a private dataset is answered as of one that is not there."""
    asked: list[dict[str, str]] = [
        {},
        {"If-None-Match": "*"},
        {"Range": "bytes=0-3"},
        {"Range": "bytes=0-1,2-3"},
        {"Range": "bytes=999999999-"},
        {"If-Range": '"x"', "Range": "bytes=0-3"},
    ]
    compared = 0
    for route in routes(client):
        method, _, template = route.partition(" ")
        if "{namespace}" not in template:
            continue
        for revision in ("main", "v1", "v9", "0" * 40, "x"):
            for role in ("anonymous", "no scope", "other", "accepted", "launch"):
                for extra in asked:
                    if extra and ("{path" not in template or role != "anonymous"):
                        continue
                    answers = []
                    for name in ("private", "absence"):
                        path = template.replace("{namespace}", "fedstill")
                        path = path.replace("{revision}", revision).replace("{number}", "1")
                        path = path.replace("{path:path}", "README.md").replace("{name}", name)
                        path = path.replace("{folder:path}", "some")
                        answer = client.request(
                            method,
                            path,
                            headers={**bearer(tokens[role]), **extra},
                            json=MATRIX[route].json,
                        )
                        shape = sorted(
                            (key, value.replace(f"fedstill/{name}", "NAME"))
                            for key, value in answer.headers.items()
                            if key != "content-length"
                        )
                        text = answer.text.replace(f"fedstill/{name}", "NAME")
                        answers.append((answer.status_code, shape, text))
                    assert answers[0] == answers[1], f"{route} {revision} {role} {extra}"
                    assert answers[0][0] == 404
                    compared += 1
    assert compared > 200


def test_hidden_datasets_are_not_counted(client: TestClient, tokens: dict[str, str]) -> None:
    for role, token in tokens.items():
        if role in ENDED:
            continue
        listed = client.get("/api/datasets", headers=bearer(token)).json()
        names = {one["id"].partition("/")[2] for one in listed["datasets"]}
        shown = {"public", "gated"} | ({"private"} if role in PRIVATE_READERS else set())
        assert names == shown, role
        assert listed["total"] == len(shown), role
