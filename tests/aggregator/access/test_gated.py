"""Agreements, tokens and limits as those who ask meet them."""

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from aggregator.api import create_app
from aggregator.api.gate import MAX_BODY_BYTES
from aggregator.cli import app

FILE = "/datasets/fedstill/gated/resolve/main/README.md"
AGREEMENT = "/api/datasets/fedstill/gated/agreement"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def aggregator(home: Path, *arguments: str) -> dict[str, object]:
    done = CliRunner().invoke(app, [*arguments, "--home", str(home), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_a_gated_dataset_opens_once_its_agreement_is_accepted_and_again_when_it_changes(
    home: Path, client: TestClient, tmp_path: Path
) -> None:
    made = aggregator(home, "token", "create", "ada", "--dataset", "gated")
    mine = bearer(str(made["token"]))
    refused = client.get(FILE, headers=mine)
    assert (refused.status_code, refused.headers["X-Error-Code"]) == (403, "GatedRepo")
    assert client.get(AGREEMENT, headers=mine).json() == {
        "version": 1,
        "text": "Use it well.\n",
        "accepted": False,
    }
    for body in ({"version": 1, "accept": False}, {"version": 1}, {"version": "1", "accept": True}):
        assert client.post(AGREEMENT, headers=mine, json=body).status_code == 422
    unknown = {"version": 1, "accept": True, "else": 1}
    assert client.post(AGREEMENT, headers=mine, json=unknown).status_code == 422
    said = {"version": 1, "accept": True}
    for _ in range(2):
        assert client.post(AGREEMENT, headers=mine, json=said).json() == {
            "version": 1,
            "accepted": True,
        }
    assert client.get(FILE, headers=mine).status_code == 200
    # A second token of the same person need not accept again.
    again = aggregator(home, "token", "create", "ada", "--dataset", "gated")
    assert client.get(FILE, headers=bearer(str(again["token"]))).status_code == 200
    text = tmp_path / "agreement.txt"
    text.write_text("Use it better.")
    changed = aggregator(home, "dataset", "set", "gated", "--agreement", str(text))
    assert changed["agreement_version"] == 2
    assert client.get(FILE, headers=mine).status_code == 403
    assert client.post(AGREEMENT, headers=mine, json=said).status_code == 409
    assert client.post(AGREEMENT, headers=mine, json={**said, "version": 2}).status_code == 200
    assert client.get(FILE, headers=mine).status_code == 200


def test_a_revoked_token_and_a_dataset_made_private_are_refused_at_the_next_request(
    home: Path, client: TestClient, tokens: dict[str, str]
) -> None:
    headers = bearer(tokens["accepted"])
    etag = client.get(FILE, headers=headers).headers["ETag"]
    known = {**headers, "If-None-Match": etag}
    assert client.get(FILE, headers=known).status_code == 304
    aggregator(home, "token", "revoke", "accepted")
    assert client.get(FILE, headers=headers).status_code == 401
    assert client.get(FILE, headers=known).status_code == 401
    public = "/datasets/fedstill/public/resolve/main/README.md"
    assert client.get(public).status_code == 200
    aggregator(home, "dataset", "set", "public", "--visibility", "private")
    assert client.get(public).status_code == 404
    assert client.get(public, headers={"If-None-Match": "*"}).status_code == 404


def test_a_token_is_kept_as_its_hash_alone(home: Path, tokens: dict[str, str]) -> None:
    kept = b"".join(path.read_bytes() for path in home.glob("catalog.sqlite*"))
    for role, token in tokens.items():
        assert len(token) == 48 or role == "anonymous"  # 43 characters of base64: 256 bits
        assert not token or token.encode() not in kept
    assert b"not-accepted" in kept  # what is kept can be found there
    listed = json.dumps(aggregator(home, "token", "list"))
    assert "sha256" not in listed
    assert not any(token and token in listed for token in tokens.values())


def test_downloads_are_written_down(home: Path, tokens: dict[str, str]) -> None:
    path = "/datasets/fedstill/private/resolve/main/pairs.bin"
    headers = bearer(tokens["named"])
    with TestClient(create_app(home)) as client:
        client.get(path, headers=headers)
        client.get(path, headers={**headers, "Range": "bytes=10-19"})
        client.head(path, headers=headers)
        client.get(path, headers={**headers, "If-None-Match": "*"})
        client.get(path)
        client.get("/datasets/fedstill/public/resolve/main/README.md")
    # An orderly stop wrote all of it.
    found = aggregator(home, "downloads")["downloads"]
    assert isinstance(found, list)
    facts = [(one["principal"], one["dataset"], one["path"], one["bytes"]) for one in found]
    assert facts == [
        (None, "fedstill/public", "README.md", 9),
        ("named", "fedstill/private", "pairs.bin", 10),
        ("named", "fedstill/private", "pairs.bin", 256 * 8000),
    ]
    assert all(b"testclient" not in file.read_bytes() for file in home.glob("catalog.sqlite*"))


def test_tokens_of_the_hub_are_nobodys(client: TestClient) -> None:
    public = "/datasets/fedstill/public/resolve/main/README.md"
    assert client.get(public, headers=bearer("hf_abc")).status_code == 200
    assert client.get(FILE, headers=bearer("hf_abc")).status_code == 401
    for header in ("Bearer abc", "Bearer", "Basic YTpi", "Bearer fdst_" + "x" * 5000, ""):
        answer = client.get(public, headers={"Authorization": header})
        assert answer.status_code == 401, header


@pytest.mark.parametrize("behind", [False, True])
def test_rates_are_bounded(home: Path, tokens: dict[str, str], behind: bool) -> None:
    settings = f"api_requests_a_minute = 5\nbehind_proxy = {str(behind).lower()}\n"
    (home / "aggregator.toml").write_text(settings)
    with TestClient(create_app(home)) as client:
        answers = [
            client.get("/livez", headers={"X-Forwarded-For": f"192.0.2.9, 192.0.2.{n}"})
            for n in range(6)
        ]
        assert [one.status_code for one in answers[:5]] == [200] * 5
        # What a client claims of its address counts only where a proxy of ours said it.
        assert answers[5].status_code == (200 if behind else 429)
        same = [
            client.get("/livez", headers={"X-Forwarded-For": f"192.0.2.{n}, 192.0.2.77"})
            for n in range(6)
        ]
        assert same[5].status_code == 429
        assert 1 <= int(same[5].headers["Retry-After"]) <= 60
        # Somebody with a token counts for themselves, and wrong tokens for the address.
        assert client.get("/livez", headers=bearer(tokens["reader"])).status_code == 200
        guesses = [client.get("/livez", headers=bearer(f"fdst_{n}")) for n in range(7)]
        assert guesses[-1].status_code == 429


def test_bodies_are_bounded(client: TestClient, tokens: dict[str, str]) -> None:
    headers = bearer(tokens["accepted"])
    answer = client.post(AGREEMENT, headers=headers, content=b" " * (MAX_BODY_BYTES + 1))
    assert answer.status_code == 413
    parts = (b" " * 1000 for _ in range(100))
    assert client.post(AGREEMENT, headers=headers, content=parts).status_code in (400, 413)


def test_answers_are_hardened(client: TestClient, tokens: dict[str, str]) -> None:
    for path in ("/livez", "/api/datasets", "/nothing", FILE):
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "Authorization" in headers["Vary"]
    mine = client.get(FILE, headers=bearer(tokens["accepted"])).headers
    assert mine["Cache-Control"] == "private, no-cache"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["token", "create", "bad name"], "name"),
        (["token", "create", "ada", "--scope", "root"], "scopes"),
        (["token", "create", "ada", "--days", "100000"], "days"),
        (["token", "create", "ada", "--scope", "admin", "--dataset", "gated"], "datasets"),
        (["token", "revoke", "nobody"], "token list"),
        (["dataset", "set", "public", "--visibility", "gated"], "agreement"),
        (["dataset", "set", "gated", "--agreement", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_what_a_command_does_not_do(home: Path, arguments: list[str], named: str) -> None:
    done = CliRunner().invoke(app, [*arguments, "--home", str(home)])
    assert done.exit_code == 1
    assert named in done.stderr
    assert "Traceback" not in done.output
