import json
import re
from html import unescape
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from aggregator.desk import launching
from aggregator.desk.clerk import NotDoneError
from aggregator.desk.contract_form import TASKS, draft_of_form, draft_of_text, groups
from aggregator.home import AggregatorHome
from shared.contract import ContractError, RunContract, read_contract
from tests.aggregator.desk.conftest import csrf_of

TOML = 'name = "new"\n[task]\nname = "mr-sr"\n'


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("task", TASKS)
def test_an_empty_form_is_the_contract_of_its_defaults(task: str) -> None:
    curves = {"task.transfer": "1, 0.8, 0.4, 0.1", "task.noise_hu": "0, 2, 4, 2"}
    given = {"name": "x", **(curves if task == "ct-kernel" else {})}
    draft = draft_of_form(task, given)
    assert draft.contract is not None and draft.problems == {}
    assert draft.contract.task.name == task
    assert draft_of_text(draft.toml).contract == draft.contract
    if task != "ct-kernel":
        named = RunContract.model_validate({"name": "x", "task": {"name": task}})
        assert draft.contract.digest() == named.digest()


@pytest.mark.parametrize("task", TASKS)
def test_every_field_filled_with_its_default_changes_nothing(task: str) -> None:
    """So each default that the form shows is the contract's, in every field."""
    curves = {"task.transfer": "1, 0.8, 0.4, 0.1", "task.noise_hu": "0, 2, 4, 2"}
    given = {"name": "x", **(curves if task == "ct-kernel" else {})}
    sparse = draft_of_form(task, given).contract
    shown = {
        one.path: one.default
        for group in groups(task, given={}, problems={})
        for one in group.entries
        if one.default
    }
    assert len(shown) > 25
    filled = draft_of_form(task, {**shown, **given})
    assert filled.problems == {} and filled.contract == sparse


def test_what_is_wrong_stands_beside_its_field(desk: TestClient) -> None:
    form = {
        "csrf": csrf_of(desk.get("/desk/launch").text),
        "task": "ct-denoise",
        "name": "Not a name",
        "task.photons": "-1",
        "probes.depths": "3, many",
    }
    answer = desk.post("/desk/launch", data=form)
    assert answer.status_code == 422
    page = unescape(answer.text)
    for path, said in {
        "name": "lower-case letters",
        "task.photons": "greater than or equal to 1",
        "probes.depths": "valid integer",
    }.items():
        beside = re.search(rf'<div class="field" id="f-{re.escape(path)}">.*?</div>', page, re.S)
        assert beside and said in beside[0] and 'aria-invalid="true"' in beside[0]
    assert 'value="3, many"' in page, "what was typed is kept"


def test_what_is_pasted_counts_and_may_be_hostile(desk: TestClient) -> None:
    number = csrf_of(desk.get("/desk/launch").text)
    page = desk.post("/desk/launch", data={"csrf": number, "toml": TOML, "name": "other"}).text
    assert draft_of_text(TOML).contract is not None
    contract = draft_of_text(TOML).contract
    assert contract is not None and contract.digest() in page
    hostile = '</textarea><script>planted()</script>\nname = "'
    answer = desk.post("/desk/launch", data={"csrf": number, "toml": hostile})
    assert answer.status_code == 422 and "<script>planted" not in answer.text
    assert "not valid TOML" in answer.text


@pytest.mark.parametrize(
    "text", ["x = " + "[" * 15_000, "x = " + "{a = " * 3000, "seed = " + "1" * 9000]
)
def test_what_is_beyond_reason_is_not_valid(tmp_path: Path, desk: TestClient, text: str) -> None:
    number = csrf_of(desk.get("/desk/launch").text)
    assert desk.post("/desk/launch", data={"csrf": number, "toml": text}).status_code == 422
    assert "not valid TOML" in draft_of_text(text).problems[""]
    file = tmp_path / "contract.toml"
    file.write_text(text)
    with pytest.raises(ContractError, match="not valid TOML"):
        read_contract(file)


def test_a_form_of_many_sites_can_be_sent(desk: TestClient) -> None:
    number = csrf_of(desk.get("/desk/launch").text)
    many = {f"site.hospital-{n}": "on" for n in range(1000)}
    answer = desk.post("/desk/launch", data={"csrf": number, "toml": TOML, **many})
    assert answer.status_code == 200


def test_a_contract_is_saved_as_a_file(desk: TestClient) -> None:
    number = csrf_of(desk.get("/desk/launch").text)
    answer = desk.post("/desk/launch", data={"csrf": number, "toml": TOML, "do": "download"})
    assert answer.headers["Content-Disposition"] == 'attachment; filename="new.toml"'
    assert draft_of_text(answer.text).contract == draft_of_text(TOML).contract


def test_programs_check_ask_and_launch(
    home: AggregatorHome,
    client: TestClient,
    tokens: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may = bearer(tokens["launch:run"])
    good = client.post("/api/desk/check", headers=may, json={"toml": TOML}).json()
    contract = draft_of_text(TOML).contract
    assert contract is not None and good["digest"] == contract.digest()
    bad = client.post("/api/desk/check", headers=may, json={"toml": TOML + "size_px = 1\n"})
    assert bad.status_code == 200 and not bad.json()["valid"]
    assert set(bad.json()["problems"]) == {"task.size_px"}
    orders: list[list[str]] = []

    def order(_home: AggregatorHome, arguments: list[str], *, within_s: float) -> dict[str, object]:
        orders.append(arguments)
        assert Path(arguments[1]).read_text("utf-8") == TOML
        if "--dry-run" in arguments:
            return {"sites": [{"site": "hospital-a", "verdict": "refuse", "code": "policy"}]}
        return {"run": "somewhere", "digest": "ab" * 32, "state": "submitted"}

    monkeypatch.setattr(launching, "order", order)
    asked = {"toml": TOML, "sites": ["hospital-a"], "quorum": 0.6, "coordinator": "first"}
    said = client.post("/api/desk/dry-run", headers=may, json=asked).json()
    assert said["sites"][0]["code"] == "policy"
    done = client.post("/api/desk/launch", headers=may, json=asked).json()
    assert done == {"run": "ab" * 32, "state": "submitted"}
    chosen = ["--site", "hospital-a", "--coordinator", "first"]
    assert orders[0][2:] == ["--dry-run", *chosen]
    assert orders[1][2:] == ["--detach", *chosen, "--quorum", "0.6"]
    assert not list(home.root.glob(".contract-*")), "the file is gone"
    trail = client.get("/api/desk/audit", headers=may).json()["actions"]
    assert [one["action"] for one in trail] == ["launch", "dry run"]
    assert trail[1]["detail"] == "hospital-a: refuse"


def test_what_sites_say_is_shown_beside_the_form_in_words(
    desk: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = {"rounds": 6, "releases": 9, "epsilon": None, "bytes_down": 1000, "bytes_up": 2_500_000}
    said = [
        {"site": "a", "verdict": "accept", "patients_at_least": 10, "cost": cost},
        {"site": "b", "verdict": "refuse", "code": "policy"},
        {"site": "c", "verdict": "offline"},
    ]
    monkeypatch.setattr(launching, "order", lambda *_, **__: {"sites": said})
    number = csrf_of(desk.get("/desk/launch").text)
    form = {"csrf": number, "toml": TOML, "do": "dry-run", "site.hospital-a": "on"}
    page = unescape(desk.post("/desk/launch", data=form).text)
    assert "at least 10 patients" in page and "6 rounds, 9 gradient vectors" in page
    assert "asks for more than the hospital's policy allows" in page
    assert "is not connected" in page


def test_a_launch_is_refused_in_the_commands_words(home: AggregatorHome, desk: TestClient) -> None:
    number = csrf_of(desk.get("/desk/launch").text)
    form = {"csrf": number, "toml": TOML, "do": "launch"}
    answer = desk.post("/desk/launch", data=form)  # the real command: no site is enrolled
    assert answer.status_code == 409
    assert str(home.root) not in answer.text
    newest = desk.get("/api/desk/audit?limit=1").json()["actions"][0]
    assert (newest["action"], newest["outcome"]) == ("launch", "refused")
    assert newest["detail"] in unescape(answer.text)


def test_what_needs_a_folder_or_minutes_is_left_to_the_command(desk: TestClient) -> None:
    number = csrf_of(desk.get("/desk/launch").text)
    public = TOML + '[prior]\nkind = "public"\nlicense = "CC0-1.0"\nstatement = "an atlas"\n'
    answer = desk.post("/desk/launch", data={"csrf": number, "toml": public, "do": "launch"})
    assert "--public FOLDER" in answer.text and 'value="launch"' not in answer.text


def test_bad_terms_are_named(desk: TestClient) -> None:
    number = csrf_of(desk.get("/desk/launch").text)
    form = {"csrf": number, "toml": TOML, "do": "launch", "quorum": "most"}
    answer = desk.post("/desk/launch", data=form)
    assert answer.status_code == 409 and "quorum" in unescape(answer.text)


def test_a_command_that_hangs_or_breaks_is_told(
    home: AggregatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aggregator.desk import clerk

    monkeypatch.setattr(clerk, "COMMAND", ("-c", "import time; time.sleep(60)"))
    with pytest.raises(NotDoneError, match="took longer than 1 s"):
        clerk.order(home, ["launch"], within_s=1)
    monkeypatch.setattr(clerk, "COMMAND", ("-c", "raise ValueError('secret')"))
    with pytest.raises(NotDoneError, match="failed") as caught:
        clerk.order(home, ["launch"], within_s=30)
    assert "secret" not in caught.value.hint + caught.value.error
    monkeypatch.setattr(clerk, "COMMAND", ("-c", f"print({json.dumps(json.dumps({'a': 1}))})"))
    assert clerk.order(home, ["launch"], within_s=30) == {"a": 1}
