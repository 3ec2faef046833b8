"""``site-agent import`` as it is typed."""

import json
import ssl
from pathlib import Path

import certifi
import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from aggregator.certificates import ensure_certificates
from site_agent.cli import app
from site_agent.enrolment import enrol

PAGE = Path(__file__).parents[3] / "docs" / "hospital.md"


@pytest.fixture
def service(tmp_path, write_slice, serve):
    """One study of three slices."""
    study = {"StudyInstanceUID": "1.2.1", "series": "1.2.1.1", "PatientName": "CANARY"}
    with serve([write_slice(tmp_path / str(n), **study) for n in range(3)]) as running:
        yield running


@pytest.fixture
def command(tmp_path):
    """Runs ``site-agent import ...`` on a home with this in its settings."""
    home = tmp_path / "home"
    enrol(home=home, name="site-a", aggregator="localhost:1", images=home / "spool")
    settings = (home / "site.toml").read_text()

    def run(text, *arguments):
        (home / "site.toml").write_text(f"{settings}\n{text}\n")
        return CliRunner().invoke(app, ["import", *arguments, "--home", str(home)])

    run.home = home
    return run


def web(url, more=""):
    return f'[importer.dicomweb]\nurl = "{url}"\ntimeout_s = 5\n{more}\n'


def test_a_pull_says_what_it_did(command, service):
    result = command(web(service.url), "pull")
    assert result.exit_code == 0
    assert "1 studies, 1 series, 3 objects: 3 fetched, 0 there before, 0 missing" in result.stdout
    assert len(list((command.home / "spool").iterdir())) == 3
    again = command(web(service.url), "pull", "--json")
    assert json.loads(again.stdout)["present"] == 3
    assert "CANARY" not in result.output + again.output


def test_objects_that_did_not_come_are_a_failure(command, service):
    service.status_of_series = 404
    result = command(web(service.url), "pull")
    assert result.exit_code == 1
    assert "3 objects did not come; run it again" in result.output


def test_a_full_spool_names_its_setting(command, service):
    result = command(f"[importer]\nquota_gb = 1e-6\n{web(service.url)}", "pull")
    assert result.exit_code == 2
    assert "importer.quota_gb" in result.output


def test_an_archive_that_cannot_be_used_needs_a_fix(command, service):
    service.status = 403
    result = command(web(service.url), "pull")
    assert result.exit_code == 2
    assert "token_file" in result.output
    assert "CANARY" not in result.output


@pytest.mark.parametrize("name", ["listen", "dicomweb"])
def test_a_source_that_is_not_set_says_how(command, name):
    result = command("", "listen" if name == "listen" else "pull")
    assert result.exit_code == 2
    assert f"[importer.{name}]" in result.output


def test_a_private_authority_vouches_for_the_archive(command, service, tmp_path, monkeypatch):
    # requests would let this variable overrule what the settings say.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certifi.where())
    ensure_certificates(tmp_path / "tls", names=["localhost"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls" / "server.crt", tmp_path / "tls" / "server.key")
    service.server.socket = context.wrap_socket(service.server.socket, server_side=True)
    url = service.url.replace("http://127.0.0.1", "https://localhost")
    refused = command(web(url), "pull")
    assert refused.exit_code == 2
    assert "importer.dicomweb.ca_file: the certificate of localhost" in refused.output
    trusted = command(web(url, f'ca_file = "{tmp_path / "tls" / "ca.crt"}"'), "pull")
    assert trusted.exit_code == 0, trusted.output
    assert "3 fetched" in trusted.output


def test_both_commands_are_on_the_hospitals_page():
    group = get_command(app).commands["import"]
    assert isinstance(group, typer.core.TyperGroup)
    for name in group.commands:
        assert f"`site-agent import {name}`" in PAGE.read_text("utf-8")
