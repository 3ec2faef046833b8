import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shared.findings import exit_code, failed, good, unjudged, warning
from site_agent.cli import app
from site_agent.preflight import checks
from site_agent.settings import SiteSettings

NewSite = Callable[..., SiteSettings]
Edge = Callable[..., AbstractContextManager[int]]


def content(home: Path) -> dict[Path, tuple[bytes, int]]:
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in home.rglob("*") if p.is_file()}


def test_a_failure_outweighs_what_cannot_be_judged_and_a_warning_is_fine() -> None:
    fine, soon = good("a", "b"), warning("a", "b", "c")
    assert exit_code([fine, soon]) == 0
    assert exit_code([fine, unjudged("a", "b", "c"), soon]) == 4
    assert exit_code([unjudged("a", "b", "c"), failed("a", "b", "c")]) == 1


def test_a_site_that_is_ready_is_green_and_nothing_is_changed(
    new_site: NewSite, edge: Edge, tmp_path: Path
) -> None:
    with edge() as port:
        settings = new_site(port)
        before = content(tmp_path)
        result = CliRunner().invoke(app, ["preflight", "--home", str(settings.home), "--json"])
    assert content(tmp_path) == before
    found = json.loads(result.stdout)
    bad = [one for one in found["checks"] if one["verdict"] not in ("good", "warning")]
    assert (result.exit_code, found["exit_code"], bad) == (0, 0, [])
    assert {"keys", "kit", "TLS", "clock", "fleet API", "patients", "gradient"} <= {
        one["check"] for one in found["checks"]
    }
    assert "CANARY" not in result.output


def test_worker_and_connector_look_each_at_what_they_have(
    new_site: NewSite, edge: Edge, tmp_path: Path
) -> None:
    with edge() as port:
        home = new_site(port).home
        both = [check.name for check in checks(home)]
        worker, connector = (
            [check.name for check in checks(home, part=part)] for part in ("worker", "connector")
        )
        for path in (tmp_path / "images", home / "cohort"):  # as in the connector's container
            path.rename(path.with_name("hidden"))
        assert {check.run().verdict for check in checks(home, part="connector")} == {"good"}
    assert set(worker) | set(connector) == set(both)
    assert {"TLS", "DNS"}.isdisjoint(worker) and {"images", "gradient"}.isdisjoint(connector)
    result = CliRunner().invoke(app, ["preflight", "--home", str(home), "--part", "moon"])
    assert result.exit_code == 2 and "all, worker, connector" in result.output


def test_a_site_that_has_not_joined_cannot_be_judged(new_site: NewSite) -> None:
    settings = new_site(1, joins=False, patients=0)
    runner = CliRunner(env={"COLUMNS": "200"})
    result = runner.invoke(app, ["preflight", "--home", str(settings.home)])
    assert result.exit_code == 4
    assert all(heading in result.stdout for heading in ("Check", "Problem", "How to fix"))
    assert "site-agent join" in result.stdout and "site-agent index" in result.stdout
    assert "CANARY" not in result.output


@pytest.mark.parametrize(
    ("file", "line", "check"),
    [("site.toml", "colour = 1", "configuration"), ("policy.toml", "min_patients = 0", "policy")],
)
def test_a_file_that_does_not_parse_is_named(
    new_site: NewSite, file: str, line: str, check: str
) -> None:
    settings = new_site(1)
    path = settings.home / file
    path.write_text(f"{path.read_text()}\n{line}\n")
    (found,) = [one.run() for one in checks(settings.home)]
    assert (found.check, found.verdict) == (check, "failed")
    assert line.split()[0] in found.problem
