import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aggregator.catalog import Catalog, StoredFile
from aggregator.cli import app


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "aggregator.toml").write_text("")
    catalog = Catalog(tmp_path / "catalog.sqlite")
    for digit in "abc":
        catalog.publish(
            namespace="fedstill",
            name="ct-demo",
            digest=digit * 64,
            summary={},
            files=lambda number: [StoredFile("a", 1, "a" * 64)],
        )
    catalog.close()
    return tmp_path


def aggregator(home: Path, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["release", *arguments, "--home", str(home)])
    return done.exit_code, done.output


def test_a_version_is_withdrawn_and_listed(home: Path) -> None:
    code, said = aggregator(home, "withdraw", "ct-demo@v3", "--reason", "wrong window")
    assert code == 0, said
    assert "main is v2" in said
    code, said = aggregator(home, "list", "ct-demo")
    assert code == 0
    lines = said.splitlines()
    assert [line.split()[0] for line in lines] == ["v3", "v2", "v1"]
    assert lines[0].endswith(": wrong window")
    assert "withdrawn" not in lines[1]


def test_commands_answer_in_json(home: Path) -> None:
    for number, main in ((3, 2), (2, 1), (1, None)):
        version = f"fedstill/ct-demo@{number}"
        code, said = aggregator(home, "withdraw", version, "--reason", "why", "--json")
        assert code == 0, said
        assert json.loads(said) == {"name": "ct-demo", "version": number, "main": main}
    listed = json.loads(aggregator(home, "list", "ct-demo", "--json")[1])
    assert [one["withdrawn"]["reason"] for one in listed["versions"]] == ["why"] * 3
    assert json.loads(aggregator(home, "list", "none", "--json")[1])["versions"] == []


def test_a_long_list_is_complete(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aggregator.release_command.PAGE", 2)
    assert len(aggregator(home, "list", "ct-demo")[1].splitlines()) == 3


@pytest.mark.parametrize(
    ("version", "reason", "code", "message"),
    [
        ("ct-demo@v4", "why", 1, "no version fedstill/ct-demo@v4"),
        ("ct-demo@v3", " ", 1, "a reason has 1 to 500"),
        ("ct-demo", "why", 2, "by its number"),
        ("ct-demo@" + "a" * 40, "why", 2, "by its number"),
        ("../x@v3", "why", 2, "letters"),
    ],
)
def test_what_cannot_be_withdrawn_is_said(
    home: Path, version: str, reason: str, code: int, message: str
) -> None:
    done = aggregator(home, "withdraw", version, "--reason", reason)
    assert done[0] == code
    assert message in " ".join(done[1].replace("│", " ").split())
