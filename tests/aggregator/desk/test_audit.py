from fastapi.testclient import TestClient

from aggregator.catalog import Catalog
from aggregator.desk.trail import Action, Trail
from aggregator.home import AggregatorHome
from tests.aggregator.desk.conftest import FIRST, SECOND


def write_actions(home: AggregatorHome, count: int) -> None:
    catalog = Catalog(home.catalog)
    trail = Trail(catalog.database)
    for number in range(count):
        trail.record(
            Action(
                at=f"2026-01-01T00:00:{number % 60:02d}.000Z",
                principal="dr-x",
                token_id="ab",
                address="192.0.2.1",
                action="pause",
                run=(FIRST, SECOND)[number % 2].digest(),
                outcome="done" if number % 3 else "refused",
                detail=f"<b>number {number}</b>",
            )
        )
    catalog.close()


def test_the_trail_is_shown_by_pages_the_newest_first(
    home: AggregatorHome, desk: TestClient
) -> None:
    write_actions(home, 60)
    first, second = desk.get("/desk/audit").text, desk.get("/desk/audit?page=2").text
    assert "number 59" in first and "number 10&lt;" in first and "number 9&lt;" in second
    assert "<b>" not in first, "what is told is text"
    twin = desk.get("/api/desk/audit?limit=5").json()
    assert (twin["total"], len(twin["actions"])) == (61, 5)  # and the signing in
    assert [one["detail"] for one in twin["actions"]][:2] == [
        "<b>number 59</b>",
        "<b>number 58</b>",
    ]


def test_the_trail_of_one_run(home: AggregatorHome, desk: TestClient) -> None:
    write_actions(home, 6)
    twin = desk.get(f"/api/desk/audit?run={FIRST.digest()[:16]}").json()
    assert twin["total"] == 3
    assert {one["run"] for one in twin["actions"]} == {FIRST.digest()}
    assert "number 5" not in desk.get(f"/desk/audit?run={FIRST.digest()[:16]}").text
    assert desk.get("/api/desk/audit?run=%25").status_code == 422
