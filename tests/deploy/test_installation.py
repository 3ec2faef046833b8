"""What the compose file, the Dockerfiles and the units promise."""

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    document = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text())
    found: dict[str, Any] = document["services"]
    return found


def commands(program: str) -> set[str]:
    if program == "aggregator":
        from aggregator.cli import app
    else:
        from site_agent.cli import app
    return set(get_command(app).commands)  # type: ignore[attr-defined]


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Container path to ``source[:mode]``; the source may hold a default with a colon."""
    found = {}
    for volume in service["volumes"]:
        match = re.fullmatch(r"(.+?):(/[^:]*)(:ro)?", volume)
        assert match, volume
        found[match[2]] = match[1] + (match[3] or "")
    return found


def test_the_worker_has_images_and_no_network(services: dict[str, Any]) -> None:
    worker = services["worker"]
    assert worker["network_mode"] == "none"
    assert "ports" not in worker
    assert mounts(worker)["/images"].endswith(":ro")


def test_the_supernode_has_the_network_and_no_images(services: dict[str, Any]) -> None:
    supernode = services["supernode"]
    assert "network_mode" not in supernode
    assert mounts(supernode) == {"/connector": "connector", "/run/fedstill": "meeting:ro"}


def test_worker_and_supernode_share_the_sockets_folder_and_nothing_else(
    services: dict[str, Any],
) -> None:
    parts = [services[name] for name in ("worker", "supernode", "importer")]
    volumes = [{source.removesuffix(":ro") for source in mounts(part).values()} for part in parts]
    assert volumes[0] & volumes[1] == {"meeting"}
    assert volumes[0] & volumes[2] == {"${FEDSTILL_IMAGES:-./images}"}
    assert not volumes[1] & volumes[2]
    users = [part["user"].partition(":")[0] for part in parts]
    assert len(set(users)) == 3 and "0" not in users
    for part in parts:
        assert part["cap_drop"] == ["ALL"] and part["read_only"]
        assert part["security_opt"] == ["no-new-privileges:true"]
    # The socket's group is the worker's own, and one that the SuperNode is in.
    assert services["worker"]["user"].partition(":")[2] in services["supernode"]["group_add"]
    dockerfile = (DEPLOY / "site" / "Dockerfile").read_text()
    assert "install -d -o worker -g fedstill -m 0750 /run/fedstill" in dockerfile


def test_only_the_edge_proxy_can_be_reached(services: dict[str, Any]) -> None:
    assert services["edge"]["network_mode"] == "service:aggregator"
    listens = re.findall(r"listen (\d+)", (DEPLOY / "edge" / "edge.conf").read_text())
    published = [port.rpartition(":")[2] for port in services["aggregator"]["ports"]]
    assert published == listens == ["8443"]
    assert [name for name, service in services.items() if "ports" in service] == [
        "aggregator",
        "importer",
    ]


def test_the_importer_is_on_the_imaging_network_and_sees_nothing_made_of_images(
    services: dict[str, Any],
) -> None:
    importer = services["importer"]
    assert importer["profiles"] == ["importer"], "started by decision alone"
    assert importer["ports"] == ["${FEDSTILL_IMAGING_ADDRESS:-127.0.0.1}:11112:11112"]
    assert importer["networks"] == ["imaging"]
    assert "imaging" not in services["supernode"].get("networks", [])
    assert set(mounts(importer)) == {"/importer", "/images"}
    assert importer["read_only"]
    assert importer["cap_drop"] == ["ALL"]


def test_the_edge_knows_the_default_ports() -> None:
    from aggregator.home import AggregatorSettings

    text = (DEPLOY / "edge" / "edge.conf").read_text()
    settings = AggregatorSettings()  # type: ignore[call-arg]
    assert f"https://127.0.0.1:{settings.superlink_port}/v1/fleet/" in text
    assert f"http://127.0.0.1:{settings.api_port};" in text
    assert settings.api_host == "127.0.0.1"


def test_every_command_exists(services: dict[str, Any]) -> None:
    for name in ("site", "aggregator"):
        text = (DEPLOY / name / "Dockerfile").read_text()
        (entry,) = json.loads(re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[0])
        (default,) = json.loads(re.findall(r"^CMD (.*)$", text, re.MULTILINE)[-1])
        assert default in {"--help", *commands(entry)}
        for source in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
            for part in source.split():
                if part not in ("README.md", "LICENSE"):
                    assert (DEPLOY.parent / part).exists(), part
    for service in ("worker", "supernode", "importer"):
        assert services[service]["command"][0] in commands("site-agent")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_run_commands_that_exist(unit: Path) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.read_text())
    program, command, *_ = parser["Service"]["ExecStart"].split()
    assert command in commands(Path(program).name)
    assert parser["Service"]["User"].startswith("fedstill")


def test_the_workers_unit_has_no_network() -> None:
    assert len(UNITS) == 5
    text = (DEPLOY / "systemd" / "fedstill-worker.service").read_text()
    assert "PrivateNetwork=yes" in text
    assert "RestrictAddressFamilies=AF_UNIX" in text


@pytest.mark.parametrize("name", ["importer", "pull"])
def test_the_importers_units_reach_nobody_until_told(name: str) -> None:
    text = (DEPLOY / "systemd" / f"fedstill-{name}.service").read_text()
    assert "IPAddressDeny=any\nIPAddressAllow=localhost\n" in text
    assert "InaccessiblePaths=-/var/lib/fedstill-worker -/var/lib/fedstill-connect" in text


def section(name: str) -> list[str]:
    return (DEPLOY / "systemd" / f"fedstill-{name}.service").read_text().splitlines()


def test_the_units_of_a_site_are_users_of_their_own_who_share_a_folder() -> None:
    users = {line for name in ("worker", "connect", "importer") for line in section(name)}
    users = {line for line in users if line.startswith("User=")}
    assert len(users) == 3
    assert {"Group=fedstill", "RuntimeDirectory=fedstill", "RuntimeDirectoryMode=0750"} <= set(
        section("worker")
    )
    assert {"SupplementaryGroups=fedstill", "Group=fedstill-connect"} <= set(section("connect"))
    assert not {line for line in section("connect") if line.startswith("RuntimeDirectory")}
    for name in ("worker", "connect", "importer", "pull"):
        assert {
            "ProtectSystem=strict",
            "NoNewPrivileges=yes",
            "CapabilityBoundingSet=",
            "SystemCallFilter=@system-service",
            "RestrictNamespaces=yes",
        } <= set(section(name))


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not there")
def test_systemd_has_nothing_against_the_units(tmp_path: Path) -> None:
    for unit in sorted((DEPLOY / "systemd").iterdir()):
        # What they start is installed elsewhere: here it is a command that is there.
        text = re.sub(r"ExecStart=\S+", "ExecStart=/usr/bin/true", unit.read_text())
        (tmp_path / unit.name).write_text(text)
    verify = ["systemd-analyze", "verify", *sorted(tmp_path.iterdir())]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    rate = ["systemd-analyze", "security", "--offline=true", "--threshold=20"]
    for name in ("worker", "connect", "importer", "pull"):
        unit = tmp_path / f"fedstill-{name}.service"
        done = subprocess.run([*rate, unit], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout.splitlines()[-1]
