import json
import re
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from fastapi.testclient import TestClient

from aggregator.desk.run_page import BUTTONS, left
from aggregator.desk_api import RunView
from aggregator.home import AggregatorHome
from aggregator.lifecycle import ALLOWED, State, transition
from aggregator.meanings import SITES, STATES
from aggregator.runs import hold_run
from tests.aggregator.desk.conftest import FIRST, SECOND
from tests.aggregator.desk.runs import ended, snapshot, tell, waiting

ADDRESS, TWIN = (f"{start}/runs/{FIRST.digest()}" for start in ("/desk", "/api/desk"))
BECOMES = {
    "pause": {"paused", "stopping"},
    "stop": {"paused", "stopping"},
    "abort": {"aborted", "stopping"},
    "resume": {"submitted", "running"},
    "build": {"finished"},
    "publish": {"published"},
}


def folder(home: AggregatorHome) -> Path:
    return home.run_folder(FIRST.digest())


def words(page: str) -> str:
    """The page's text, its markup and scripts left out."""
    page = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", "", page).split())


def test_a_page_says_state_round_time_left_and_why_each_site_waits(
    desk: TestClient, home: AggregatorHome
) -> None:
    run, now = folder(home), time.time()
    refused = "hospital-b: refused: policy (incident 77ab)"
    tell(
        run,
        ended(2, time=now - 20),
        waiting("hospital-a", "offline", time=now - 3),
        {**waiting("hospital-b", "refused", time=now - 1, reason=refused), "eta_s": 3725},
    )
    transition(run, "running")
    with hold_run(run):
        page = desk.get(ADDRESS)
    assert page.status_code == 200
    text = words(page.text)
    for told in (
        STATES["running"],
        f"Round 3 of {FIRST.rounds}: hospitals answer probes, 1 of 2; about 1:02:05 left",
        "is not connected",
        "refuses: the contract asks for more than the hospital&#39;s policy allows"
        " (policy, incident 77ab in its log)",
        "all sites 0.520",
        "0.5000",
        FIRST.digest(),
    ):
        assert told in text, told
    assert SITES["offline"].split(":")[0] in text
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    assert str(home.root) not in page.text


def test_the_twin_says_what_the_page_shows(desk: TestClient, home: AggregatorHome) -> None:
    run = folder(home)
    tell(run, ended(1, time=5.0), ended(2, time=9.0))
    snapshot(run, FIRST, 2)
    twin = desk.get(TWIN).json()
    view = RunView.model_validate(twin)
    assert (view.digest, [one.loss for one in view.history]) == (FIRST.digest(), [1, 0.5])
    assert [kept.url for kept in view.snapshots] == [f"{TWIN}/pairs/2"]
    assert twin["journal_bytes"] == (run / "events.jsonl").stat().st_size
    assert desk.get(TWIN, params={"colour": "red"}).status_code == 422
    schema = desk.get("/openapi.json").json()
    answer = schema["paths"]["/api/desk/runs/{digest}"]["get"]["responses"]["200"]
    assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/RunView")


def test_buttons_are_those_that_the_state_allows(desk: TestClient, home: AggregatorHome) -> None:
    assert set(BUTTONS) == set(get_args(State))
    for state, buttons in BUTTONS.items():
        for button in buttons:
            assert BECOMES[button.action] & ALLOWED[state], f"{button.action} of {state}"
            assert bool(button.asks) == (button.action in ("stop", "abort", "publish"))
    run = folder(home)
    with hold_run(run):
        for state, buttons in BUTTONS.items():
            (run / "state.json").write_text(json.dumps({"state": state, "since": time.time()}))
            page = desk.get(ADDRESS).text
            actions = re.findall(rf'action="{ADDRESS}/(\w+)"', page)
            assert actions == [one.action for one in buttons]
            for form in re.findall(r'<form[^>]*action="/desk/runs/.*?</form>', page, re.DOTALL):
                assert re.search(r'name="csrf" value="[0-9a-f]{64}"', form)
                assert 'method="post"' in form
            # What cannot be taken back stands inside of something that has to be opened first.
            for button in buttons:
                before = page[: page.index(f'action="{ADDRESS}/{button.action}"')]
                inside = before.count("<details") - before.count("</details")
                assert inside == bool(button.asks), f"{button.action} of {state}"


def test_what_others_wrote_is_shown_as_text(desk: TestClient, home: AggregatorHome) -> None:
    hostile = '</script><img src=x onerror="alert(1)">'
    run = folder(home)
    tell(run, ended(1, time=1, personas=[hostile]))
    tell(run, waiting("hospital-a", "rejected", time=2, reason=f"hospital-a: {hostile}"))
    page = desk.get(ADDRESS).text
    assert "<img src=x" not in page
    assert "rejected" in page and "&lt;img src=x" in page
    figures = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page)
    assert figures
    lines = [one["lines"] for one in json.loads(figures[1])["curves"]]
    assert hostile in {line["label"] for of_one in lines for line in of_one}


def test_a_run_that_is_not_there_or_damaged_is_said_with_the_reason(
    desk: TestClient, home: AggregatorHome
) -> None:
    for wrong in ("0" * 64, FIRST.digest()[:-1] + ("0" if FIRST.digest()[-1] != "0" else "1")):
        assert desk.get(f"/api/desk/runs/{wrong}").status_code == 404
        assert desk.get(f"/desk/runs/{wrong}").status_code == 404
    assert desk.get(f"/desk/runs/{FIRST.digest()[:8]}").status_code == 200
    (folder(home) / "plan.json").write_text("{")
    answer = desk.get(TWIN)
    assert answer.status_code == 409
    assert "plan.json is missing or damaged" in answer.json()["error"]
    page = desk.get(ADDRESS)
    assert page.status_code == 409 and "plan.json is missing or damaged" in page.text
    assert str(home.root) not in answer.text + page.text
    assert desk.get(f"/api/desk/runs/{SECOND.digest()}").status_code == 200


def test_nobody_sees_a_run_without_the_scope(
    client: TestClient, home: AggregatorHome, tokens: dict[str, str]
) -> None:
    snapshot(folder(home), FIRST, 0)
    paths = [TWIN, f"{TWIN}/events", f"{TWIN}/pairs/0", f"{TWIN}/pairs/0.png"]
    paths += [f"/api/desk/compare?a={FIRST.digest()}&b={SECOND.digest()}", ADDRESS]
    statuses: dict[str, list[int]] = {}
    for scope in ("", "read:dataset", "launch:run"):
        header = {"Authorization": f"Bearer {tokens[scope]}"} if scope else {}
        header["Accept"] = "application/json"
        # The stream of a run that goes on does not end: the others show that it would begin.
        asked = [path for path in paths if scope != "launch:run" or "events" not in path]
        statuses[scope] = [client.get(path, headers=header).status_code for path in asked]
    assert set(statuses[""]) <= {401, 303} and 401 in statuses[""]
    assert set(statuses["read:dataset"]) == {403}
    assert set(statuses["launch:run"]) == {200}


def test_two_runs_are_put_side_by_side(desk: TestClient, home: AggregatorHome) -> None:
    first, second = FIRST.digest()[:16], SECOND.digest()[:16]
    tell(folder(home), ended(1, time=1))
    twin = desk.get("/api/desk/compare", params={"a": first, "b": second}).json()
    named = {one["field"]: (one["a"], one["b"]) for one in twin["differences"]}
    assert named == {"name": ("first", "second"), "seed": (0, 2)}
    page = desk.get(f"/desk/compare?run={first}&run={second}")
    assert "A is drawn through" in page.text and "<code>seed</code>" in page.text
    assert page.text.count(" selected>") == 2
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page.text)[1])  # type: ignore[index]
    assert figures["curves"][0]["lines"][0]["label"] == "A: distance"
    assert "More than two" in desk.get(f"/desk/compare?run={first}&run={second}&run={first}").text
    same = desk.get(f"/desk/compare?a={first}&b={first}").text
    assert "they are the same contract" in same
    assert "Choose two runs" in desk.get(f"/desk/compare?a={first}").text
    assert desk.get("/api/desk/compare", params={"a": first}).status_code == 422


@pytest.mark.parametrize(
    ("eta_s", "words"),
    [(None, ""), (0.0, "about 0:00"), (65.4, "about 1:05"), (3725, "about 1:02:05")],
)
def test_time_left_is_for_people(eta_s: Any, words: str) -> None:
    assert left(eta_s) == words
