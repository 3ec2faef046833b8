import time
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from aggregator.access.tokens import Tokens
from aggregator.catalog import Catalog
from aggregator.desk import session
from aggregator.desk.signing_in import local
from aggregator.desk.trail import Trail
from aggregator.home import AggregatorHome, create_home
from tests.aggregator.desk.conftest import FIRST, csrf_of

PAGE = "/desk"
TWIN = "/api/desk/runs"


def revoke(home: AggregatorHome, name: str) -> None:
    catalog = Catalog(home.catalog)
    Tokens(catalog.database).revoke(name)
    catalog.close()


def test_a_browser_is_led_to_sign_in_and_back(client: TestClient, tokens: dict[str, str]) -> None:
    led = client.get("/desk?q=1")
    to = f"/desk/login?next={quote('/desk?q=1', safe='')}"
    assert (led.status_code, led.headers["Location"]) == (303, to)
    asked = client.get(to)
    assert asked.status_code == 200 and 'value="/desk?q=1"' in asked.text
    answer = client.post("/desk/login", data={"token": tokens["launch:run"], "next": "/desk?q=1"})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/desk?q=1")
    kept = answer.headers["Set-Cookie"]
    assert "HttpOnly" in kept and "SameSite=strict" in kept and tokens["launch:run"] not in kept
    page = client.get(PAGE)
    assert page.status_code == 200 and FIRST.digest()[:16] in page.text
    assert page.headers["Cache-Control"] == "no-store"
    assert client.get(TWIN).json()["runs"][0]["name"] in ("first", "second")


@pytest.mark.parametrize(
    "path", ["https://elsewhere.example/desk", "//elsewhere.example", "/desk\\..", "/", "/deskx"]
)
def test_after_signing_in_nobody_is_led_elsewhere(path: str) -> None:
    assert local(path) == "/desk"


def test_over_https_the_cookie_is_for_this_host_alone(
    home: AggregatorHome, tokens: dict[str, str]
) -> None:
    from aggregator.api import create_app

    create_home(home.root, {"behind_proxy": 1})
    with TestClient(create_app(home.root), follow_redirects=False) as client:
        client.headers["X-Forwarded-Proto"] = "https"
        answer = client.post("/desk/login", data={"token": tokens["admin"]})
    kept = answer.headers["Set-Cookie"]
    assert kept.startswith("__Host-fedstill_desk=") and "Secure" in kept and "Path=/" in kept


@pytest.mark.parametrize("token", ["", "fdst_unknown", "read:dataset"])
def test_what_is_wrong_with_a_token_is_not_told(
    client: TestClient, tokens: dict[str, str], token: str
) -> None:
    answer = client.post("/desk/login", data={"token": tokens.get(token, token)})
    assert answer.status_code == 401 and "Set-Cookie" not in answer.headers
    assert "does not open the desk" in answer.text
    assert tokens.get(token, token) not in answer.text or not token


def test_programs_use_a_token_and_are_told_what_is_missing(
    client: TestClient, tokens: dict[str, str]
) -> None:
    assert client.get(TWIN).status_code == 401
    assert client.get(TWIN).json()["hint"].startswith("sign in at /desk/login")
    for scope, status in {"launch:run": 200, "admin": 200, "read:dataset": 403}.items():
        answer = client.get(TWIN, headers={"Authorization": f"Bearer {tokens[scope]}"})
        assert answer.status_code == status


def test_no_cache_keeps_what_the_desk_answers(desk: TestClient) -> None:
    for path in (PAGE, TWIN, "/api/desk/audit", "/api/desk/sites"):
        answer = desk.get(path)
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Cookie" in answer.headers["Vary"]


def test_a_form_of_another_servers_page_does_nothing(
    desk: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = desk.post("/desk/logout", data={"csrf": "0" * 64})
    assert forged.status_code == 403 and desk.get(PAGE).status_code == 200
    assert desk.post("/desk/logout").status_code == 403
    # The control: without the look at the number, the forged form goes through.
    with monkeypatch.context() as patched:
        patched.setattr(session.hmac, "compare_digest", lambda *_: True)
        assert desk.post("/desk/logout", data={"csrf": "0" * 64}).status_code == 303
    assert desk.get(PAGE).status_code == 303


def test_nobody_is_signed_in_by_another_servers_page(
    client: TestClient, tokens: dict[str, str]
) -> None:
    form = {"token": tokens["admin"]}
    for told in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://elsewhere.example"}):
        answer = client.post("/desk/login", data=form, headers=told)
        assert answer.status_code == 403 and "Set-Cookie" not in answer.headers
    assert client.post("/desk/login", data=form, headers={"Origin": "null"}).status_code == 403
    own = {"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/desk/login", data=form, headers=own).status_code == 303


def test_signing_out_ends_the_session_wherever_its_cookie_is(desk: TestClient) -> None:
    kept = dict(desk.cookies)
    out = desk.post("/desk/logout", data={"csrf": csrf_of(desk.get(PAGE).text)})
    assert out.headers["Location"] == "/desk/login"
    desk.cookies.update(kept)
    assert desk.get(PAGE).status_code == 303


def test_a_session_ends_with_its_token_within_a_second(
    home: AggregatorHome, desk: TestClient
) -> None:
    assert desk.get(PAGE).status_code == 200
    revoke(home, "dr-launch")
    time.sleep(0.6)
    assert desk.get(PAGE).status_code == 303


def test_a_session_ends_after_its_hours(
    client: TestClient, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "HOURS", 0)
    assert client.post("/desk/login", data={"token": tokens["admin"]}).status_code == 303
    assert client.get(PAGE).status_code == 303


def test_a_cookie_opens_nothing_but_the_desk(desk: TestClient) -> None:
    assert desk.get("/api/datasets").json()["total"] == 0
    answer = desk.post("/api/datasets/fedstill/none/agreement", json={"version": 1, "accept": True})
    assert answer.status_code in (401, 404)


def test_who_came_and_went_is_written_down_and_no_secret_is(
    home: AggregatorHome, desk: TestClient, tokens: dict[str, str]
) -> None:
    desk.post("/desk/logout", data={"csrf": csrf_of(desk.get(PAGE).text)})
    catalog = Catalog(home.catalog)
    found, total = Trail(catalog.database).newest()
    catalog.close()
    assert [(one.action, one.principal, one.outcome) for one in found] == [
        ("sign out", "dr-launch", "done"),
        ("sign in", "dr-launch", "done"),
    ]
    assert total == 2
    kept = b"".join(path.read_bytes() for path in home.root.glob("catalog.sqlite*"))
    assert b"dr-launch" in kept, "positive control: what is kept is found"
    assert tokens["launch:run"].encode() not in kept
    assert not any(value.encode() in kept for value in desk.cookies.values())


def test_a_sign_in_that_failed_is_written_down_once_and_its_token_is_not(
    home: AggregatorHome, client: TestClient
) -> None:
    for number in range(20):
        answer = client.post("/desk/login", data={"token": f"fdst_guessed_{number}"})
        assert answer.status_code == 401
    catalog = Catalog(home.catalog)
    found, total = Trail(catalog.database).newest()
    catalog.close()
    assert total == 1, "who has no token cannot fill the trail"
    assert [(one.action, one.principal, one.outcome) for one in found] == [
        ("sign in", "nobody", "refused")
    ]
    kept = b"".join(path.read_bytes() for path in home.root.glob("catalog.sqlite*"))
    assert b"guessed" not in kept


def test_failures_are_told_by_address_and_again_after_a_while(
    home: AggregatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, moment = Catalog(home.catalog), time.time()
    monkeypatch.setattr(time, "time", lambda: moment)
    trail = Trail(catalog.database)
    for after_s, address in (
        (0, "192.0.2.1"),
        (1, "192.0.2.1"),
        (2, "192.0.2.2"),
        (901, "192.0.2.1"),
    ):
        moment += after_s
        trail.refuse(address=address)
    found, _ = trail.newest()
    catalog.close()
    assert [one.address for one in found] == ["192.0.2.1", "192.0.2.2", "192.0.2.1"]


def test_the_trail_is_only_added_to(home: AggregatorHome, desk: TestClient) -> None:
    from sqlalchemy import text
    from sqlalchemy.exc import DBAPIError

    catalog = Catalog(home.catalog)
    for change in ("DELETE FROM desk_actions", "UPDATE desk_actions SET principal = 'x'"):
        with (
            pytest.raises(DBAPIError, match="only added to"),
            catalog.database.session(write=True) as opened,
        ):
            opened.execute(text(change))
    catalog.close()


def test_a_desk_that_is_off_is_not_there(home: AggregatorHome) -> None:
    from aggregator.api import create_app

    create_home(home.root, {"desk": 0})
    with TestClient(create_app(home.root)) as client:
        assert client.get("/desk/login").status_code == 404
        assert client.get(TWIN).status_code == 404


def test_a_form_that_cannot_be_read_is_said_to_be(client: TestClient) -> None:
    answer = client.post(
        "/desk/login",
        content=b"token=\xff%ff",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert answer.status_code == 422
