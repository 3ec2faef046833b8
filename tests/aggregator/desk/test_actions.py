from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient

from aggregator.access.principals import ANONYMOUS
from aggregator.catalog import Catalog
from aggregator.desk import actions
from aggregator.desk.trail import Action, Trail, recorded
from aggregator.home import AggregatorHome
from aggregator.lifecycle import read_state, transition
from tests.aggregator.desk.conftest import FIRST, csrf_of

RUN = FIRST.digest()[:16]


def newest(home: AggregatorHome) -> Action:
    catalog = Catalog(home.catalog)
    found, _ = Trail(catalog.database).newest(limit=1)
    catalog.close()
    return found[0]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def run(home: AggregatorHome) -> Path:
    return home.run_folder(FIRST.digest())


def test_a_button_pauses_and_the_trail_says_who_pressed_it(
    home: AggregatorHome, run: Path, desk: TestClient
) -> None:
    transition(run, "submitted")
    page = desk.get(f"/desk/runs/{RUN}")
    answer = desk.post(f"/desk/runs/{RUN}/pause", data={"csrf": csrf_of(page.text)})
    assert answer.status_code == 303
    assert answer.headers["Location"].startswith(f"/desk/runs/{RUN}?done=")
    assert read_state(run).state == "paused" and read_state(run).wanted == "pause"
    done = newest(home)
    assert (done.principal, done.action, done.run) == ("dr-launch", "pause", FIRST.digest())
    assert (done.outcome, done.address) == ("done", "unknown")
    assert done.detail in desk.get(answer.headers["Location"]).text


def test_a_program_aborts_by_token_and_what_has_ended_stays(
    home: AggregatorHome, run: Path, client: TestClient, tokens: dict[str, str]
) -> None:
    answer = client.post(f"/api/desk/runs/{RUN}/abort", headers=bearer(tokens["launch:run"]))
    assert answer.status_code == 200
    assert (answer.json()["state"], answer.json()["run"]) == ("aborted", FIRST.digest())
    again = client.post(f"/api/desk/runs/{RUN}/pause", headers=bearer(tokens["admin"]))
    assert again.status_code == 409 and "is aborted" in again.json()["error"]
    assert str(home.root) not in again.text
    assert (newest(home).outcome, newest(home).principal) == ("refused", "dr-admin")


def test_forged_and_unknown_actions_do_nothing(
    run: Path, desk: TestClient, tokens: dict[str, str]
) -> None:
    assert desk.post(f"/desk/runs/{RUN}/abort").status_code == 403
    assert desk.post(f"/api/desk/runs/{RUN}/abort").status_code == 403
    reading = bearer(tokens["read:dataset"])
    assert desk.post(f"/api/desk/runs/{RUN}/abort", headers=reading).status_code == 403
    assert read_state(run).state == "prepared"
    may = bearer(tokens["admin"])
    assert desk.post(f"/api/desk/runs/{RUN}/remove", headers=may).status_code == 422
    assert desk.post(f"/api/desk/runs/{'0' * 16}/abort", headers=may).status_code == 404


def test_what_commands_do_is_refused_in_their_words(
    home: AggregatorHome, client: TestClient, tokens: dict[str, str]
) -> None:
    may = bearer(tokens["launch:run"])
    answer = client.post(f"/api/desk/runs/{RUN}/publish", headers=may)
    assert answer.status_code == 409 and "has not ended" in answer.json()["error"]
    answer = client.post(f"/api/desk/runs/{RUN}/resume", headers=may)
    assert answer.status_code == 409 and "SuperLink does not answer" in answer.json()["error"]
    assert newest(home).outcome == "refused"


def test_an_action_that_cannot_be_written_down_is_not_begun(
    run: Path, desk: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = desk.get(f"/desk/runs/{RUN}").text

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(Trail, "record", fail)
        with pytest.raises(OSError, match="disk full"):
            desk.post(f"/desk/runs/{RUN}/abort", data={"csrf": csrf_of(page)})
    assert read_state(run).state == "prepared"
    # The control: it is done where it can be written down.
    desk.post(f"/desk/runs/{RUN}/abort", data={"csrf": csrf_of(page)})
    assert read_state(run).state == "aborted"


def test_an_action_whose_server_was_killed_stays_as_begun(home: AggregatorHome) -> None:
    catalog = Catalog(home.catalog)
    app = SimpleNamespace(state=SimpleNamespace(desk_trail=Trail(catalog.database)))
    request = SimpleNamespace(app=app, state=SimpleNamespace(principal=ANONYMOUS))
    with pytest.raises(KeyboardInterrupt), recorded(cast(Any, request), "publish"):
        raise KeyboardInterrupt  # as a kill: neither done nor refused
    catalog.close()
    assert (newest(home).action, newest(home).outcome) == ("publish", "begun")


def test_a_notice_is_of_the_action_that_led_here_and_of_who_asks(
    desk: TestClient, tokens: dict[str, str]
) -> None:
    page = desk.get(f"/desk/runs/{RUN}").text
    answer = desk.post(f"/desk/runs/{RUN}/pause", data={"csrf": csrf_of(page)})
    number = answer.headers["Location"].rpartition("=")[2]
    assert 'class="notice' in desk.get(f"/desk?done={number}").text
    for other in ("", "999999", "x", "1" * 30):
        assert 'class="notice' not in desk.get(f"/desk?done={other}").text
    admin = bearer(tokens["admin"])
    assert 'class="notice' not in desk.get(f"/desk?done={number}", headers=admin).text


def test_every_action_is_known_to_the_page() -> None:
    assert set(actions.DO) == {"pause", "stop", "abort", "resume", "build", "publish"}
