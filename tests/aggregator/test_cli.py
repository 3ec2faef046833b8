import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from aggregator import launch
from aggregator.cli import app
from aggregator.home import AggregatorHome
from aggregator.runs import RunError, prepare_run
from shared.contract import RunContract

CONTRACT = 'name = "demo"\n'


def aggregator(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    assert aggregator("init", "--home", tmp_path / "h", "--superlink-port", "1").exit_code == 0
    return tmp_path / "h"


def enrolment(folder: Path, name: str) -> Path:
    from site_agent.enrolment import enrol

    enrol(home=folder / name, name=name, aggregator="localhost:1", images=folder)
    return folder / name / "enrolment.json"


def test_init_says_what_to_hand_over(tmp_path: Path) -> None:
    result = aggregator("init", "--home", tmp_path, "--public-name", "agg.example.org", "--json")
    document = json.loads(result.stdout)
    assert document["superlink"] == "agg.example.org:9443"
    assert Path(document["release_key"]).exists()
    result = aggregator("init", "--home", tmp_path, "--public-port", "443")
    assert "agg.example.org:443" in result.stdout


def test_what_a_site_makes_is_what_the_aggregator_takes(home: Path, tmp_path: Path) -> None:
    file = enrolment(tmp_path, "st-anna")
    first = aggregator("site", "add", file, "--home", home, "--json")
    kit = home / "kits" / "st-anna.kit.json"
    told = {"name": "st-anna", "new": True, "registered": False, "kit": str(kit)}
    assert json.loads(first.stdout) == told
    second = aggregator("site", "add", file, "--home", home)
    assert second.exit_code == 0
    assert "enrolled already" in second.stdout
    assert str(kit) in second.stdout and kit.exists()


def test_a_site_is_revoked_without_a_superlink_and_shown_as_such(
    home: Path, tmp_path: Path
) -> None:
    assert "no site is enrolled" in aggregator("site", "list", "--home", home).stdout
    file = enrolment(tmp_path, "st-anna")
    aggregator("site", "add", file, "--home", home)
    assert "st-anna  unknown" in aggregator("site", "list", "--home", home).stdout
    gone = aggregator("site", "revoke", "st-anna", "--home", home, "--json")
    assert json.loads(gone.stdout) == {"name": "st-anna", "new": True, "applied": False}
    assert "refuses it when it starts" in (
        aggregator("site", "revoke", "st-anna", "--home", home).stdout
    )
    (state,) = json.loads(aggregator("site", "list", "--home", home, "--json").stdout)["sites"]
    assert (state["name"], state["state"]) == ("st-anna", "revoked")
    refused = aggregator("site", "add", file, "--home", home)
    assert refused.exit_code == 1 and "was revoked" in refused.stderr
    (tmp_path / "c.toml").write_text(CONTRACT)
    launched = aggregator("launch", tmp_path / "c.toml", "--home", home, "--site", "st-anna")
    assert "not enrolled: st-anna (revoked)" in launched.stderr


def test_a_run_goes_on_without_a_site_that_was_revoked(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.toml").write_text(CONTRACT)
    for name in ("st-anna", "st-bob"):
        aggregator("site", "add", enrolment(tmp_path, name), "--home", home)
    prepare_run(
        AggregatorHome(home), RunContract(name="demo"), sites=["st-anna", "st-bob"], public=None
    )
    awaited = []

    def wait(_link: object, sites: list[str], **_: object) -> list[tuple[str, ...]]:
        awaited.append(sites)
        raise RunError("far enough")

    monkeypatch.setattr(launch, "wait_for_sites", wait)
    for revoked in ("st-anna", "st-bob"):
        aggregator("site", "revoke", revoked, "--home", home)
        result = aggregator("launch", tmp_path / "c.toml", "--home", home)
        assert result.exit_code == 1
    assert awaited == [["st-bob"]]
    assert "every site of this run was revoked" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("site", "revoke", "x", "--home", "{home}"), "no site x is enrolled (enrolled: none)"),
        (("up", "--home", "{tmp}/none"), "aggregator init"),
        (("site", "add", "{tmp}/none.json", "--home", "{home}"), "none.json"),
        (("launch", "{tmp}/none.toml", "--home", "{home}"), "none.toml"),
        (("launch", "{tmp}/c.toml", "--home", "{home}"), "site add"),
        (("launch", "{tmp}/c.toml", "--home", "{home}", "--site", "x"), "not enrolled: x"),
        (("init", "--home", "{home}", "--api-port", "70000"), "api_port"),
    ],
)
def test_errors_are_one_message_and_exit_code_1(
    home: Path, tmp_path: Path, arguments: tuple[str, ...], named: str
) -> None:
    (tmp_path / "c.toml").write_text(CONTRACT)
    result = aggregator(*(part.format(tmp=tmp_path, home=home) for part in arguments))
    assert result.exit_code == 1
    assert named in result.stderr
    assert "Traceback" not in result.stderr


def test_a_finished_run_is_published_without_asking_anyone(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.toml").write_text(CONTRACT)
    aggregator("site", "add", enrolment(tmp_path, "st-anna"), "--home", home)
    place = AggregatorHome(home)
    run = prepare_run(place, RunContract(name="demo"), sites=["st-anna"], public=None)
    (run / "pairs.safetensors").touch()
    (run / "result.json").touch()
    release = {"name": "demo", "version": 1, "digest": "0" * 64, "url": "http://x", "run": "r"}
    monkeypatch.setattr(launch, "publish", lambda *_: release)
    result = aggregator("launch", tmp_path / "c.toml", "--home", home, "--json")
    assert json.loads(result.stdout) == release
    assert "published demo v1" in aggregator("launch", tmp_path / "c.toml", "--home", home).stdout


def test_launching_without_a_superlink_says_what_to_start(home: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONTRACT)
    aggregator("site", "add", enrolment(tmp_path, "st-anna"), "--home", home)
    result = aggregator("launch", tmp_path / "c.toml", "--home", home)
    assert result.exit_code == 1
    assert "aggregator up" in result.stderr


def test_a_secure_sum_is_launched_with_the_enrolled_sites_keys(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.toml").write_text(f'{CONTRACT}granularity = "federation"\n')
    for name in ("st-anna", "st-bob", "st-carl"):
        aggregator("site", "add", enrolment(tmp_path, name), "--home", home)
    launched = {}

    def publish(_home: AggregatorHome, run: Path, contract: RunContract) -> dict[str, str]:
        launched.update({run.name: contract})
        return {"name": "demo", "version": "1", "digest": "0" * 64, "url": "http://x"}

    monkeypatch.setattr(launch, "_distil", lambda *_, **__: None)
    monkeypatch.setattr(launch, "publish", publish)
    assert aggregator("launch", tmp_path / "c.toml", "--home", home).exit_code == 0
    assert aggregator("launch", tmp_path / "c.toml", "--home", home).exit_code == 0
    ((name, contract),) = launched.items()
    assert name == contract.digest()[:16]
    handed = json.loads((tmp_path / "st-bob" / "enrolment.json").read_text())
    assert contract.members[1].name == "st-bob"
    assert contract.members[1].signing_key == handed["signing_public_key"]
