"""What the compose files, the Dockerfiles and the units promise."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from tests.deploy.containers import GROUP, ID, instruction

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = {
    unit.stem.removeprefix("fedstill-"): unit for unit in sorted(DEPLOY.glob("*/systemd/*.service"))
}
COMPOSE = [
    ROOT / "docker-compose.yml",
    *(DEPLOY / name / "compose.yml" for name in ("site", "aggregator")),
]
IMAGES = [DEPLOY / name / "Dockerfile" for name in ("site", "aggregator")]
VARIABLE = r"\$\{(\w+)(?::[-?][^}]*)?\}"


def services_of(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(file.read_text())["services"]
    return found


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """Those of a hospital."""
    return services_of(DEPLOY / "site" / "compose.yml")


@pytest.fixture(scope="module")
def coordinator() -> dict[str, Any]:
    return services_of(DEPLOY / "aggregator" / "compose.yml")


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
        if isinstance(volume, dict):
            place = f"{volume['source']}/{volume['volume']['subpath']}"
            found[volume["target"]] = place + (":ro" if volume["read_only"] else "")
            continue
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
    (images,) = volumes[0] & volumes[2]
    assert images.startswith("${FEDSTILL_IMAGES:?")
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


@pytest.mark.parametrize("file", COMPOSE[0::2], ids=["trial", "aggregator"])
def test_only_the_edge_proxy_can_be_reached(file: Path) -> None:
    services = services_of(file)
    assert services["edge"]["network_mode"] == "service:aggregator"
    listens = re.findall(r"listen (\d+)", (DEPLOY / "edge" / "edge.conf").read_text())
    published = [port.rpartition(":")[2] for port in services["aggregator"]["ports"]]
    assert published == listens == ["8443"]
    assert [name for name, service in services.items() if "ports" in service] == ["aggregator"]
    assert not any("enabled" in path for path in mounts(services["edge"])), "the desk is off"
    # What faces the world cannot read what signs.
    seen = {path for path in mounts(services["edge"]) if path.startswith("/aggregator")}
    assert seen == {"/aggregator/tls", "/aggregator/blobs"}
    assert all(place.endswith(":ro") for place in mounts(services["edge"]).values())


@pytest.mark.parametrize("file", COMPOSE, ids=lambda file: file.parent.name)
def test_every_service_is_confined(file: Path) -> None:
    for name, service in services_of(file).items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"], name
        user, group = service["user"].split(":")
        if name.rpartition("-")[2] == "separate":
            assert service["cap_add"] == ["CHOWN", "DAC_OVERRIDE", "FOWNER"]
            assert service["network_mode"] == "none"
        else:
            assert int(user) > 10000 and int(group) >= 10000, name
            assert "cap_add" not in service, name
        assert not {"privileged", "pid", "ipc", "devices"} & set(service), name
        assert not any("docker.sock" in place for place in mounts(service).values()), name
        repository, _, tag = service["image"].partition(":")
        # Ours have the variant as their tag; others' are of one version.
        ours = repository.startswith("fedstill-")
        assert tag == "${FEDSTILL_TAG:-cpu}" if ours else re.match(r"\d+\.\d+\.\d+", tag), name
        once = service.get("restart") == "no" or "setup" in service.get("profiles", [])
        assert once or service["restart"] == "unless-stopped", name
        # What goes on has a health check: the file's own, or the image's.
        assert once or "test" in service.get("healthcheck", {"test": ours}), name


@pytest.mark.parametrize("name", ["site", "aggregator"])
def test_settings_of_the_compose_files_are_told(name: str) -> None:
    asked = set(re.findall(VARIABLE, (DEPLOY / name / "compose.yml").read_text()))
    text = (DEPLOY / name / "settings.env").read_text()
    told = re.findall(r"^(?:# )?([A-Z_]+)=", text, re.MULTILINE)
    assert asked <= set(told)
    # What compose itself does not ask for is handed to the aggregator, by env_file.
    assert not [one for one in set(told) - asked if one.startswith("FEDSTILL")]
    for required in re.findall(r"\$\{(\w+):\?", (DEPLOY / name / "compose.yml").read_text()):
        assert f"\n{required}=" in text
    assert not re.findall(r"^(\w*(?:KEY|PASSWORD|TOKEN|SECRET)\w*)=", text, re.MULTILINE)


@pytest.mark.parametrize("file", COMPOSE, ids=lambda file: file.parent.name)
def test_docker_compose_takes_the_files(file: Path) -> None:
    compose = compose_command()
    settings = file.with_name("settings.env")
    given = ["--env-file", str(settings)] if settings.exists() else []
    extra = [file.with_name("compose.gpu.yml")] if settings.exists() else []
    files = [word for one in (file, *extra) for word in ("-f", str(one))]
    done = subprocess.run(
        [*compose, *given, "--profile", "*", *files, "config", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["services"]) == set(services_of(file))
    if given:  # positive control: without its settings it is refused, and says which is missing
        clean = {key: value for key, value in os.environ.items() if not key.startswith("FEDSTILL")}
        refused = subprocess.run(
            [*compose, *files, "config", "-q"],
            capture_output=True,
            text=True,
            env=clean,
            check=False,
        )
        assert refused.returncode != 0 and "FEDSTILL_" in refused.stderr


def compose_command() -> list[str]:
    """Docker's own reader of compose files, which needs no engine to read one."""
    for command in (["docker-compose"], ["docker", "compose"]):
        if shutil.which(command[0]):
            asked = [*command, "version", "--short"]
            done = subprocess.run(asked, capture_output=True, text=True, check=False)
            if done.returncode == 0 and done.stdout.strip().lstrip("v") >= "2.":
                return command
    pytest.skip("Docker Compose 2 is not installed")


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


def test_every_command_exists() -> None:
    for image in IMAGES:
        (entry,) = instruction(image.read_text(), "ENTRYPOINT")
        (default,) = instruction(image.read_text(), "CMD")
        assert default in {"--help", *commands(entry)}
    for file in COMPOSE:
        for name, service in services_of(file).items():
            entry, command = service.get("entrypoint", []), service.get("command", [])
            if entry[:1] == ["/bin/sh"]:
                found = re.findall(r"(?<![-\w])(site-agent|aggregator) ([a-z]+)\b", command[0])
                assert all(word in commands(program) for program, word in found), name
            elif name != "edge":
                program = "aggregator" if name == "aggregator" else "site-agent"
                assert command[0] in commands(program), name


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.parent.name)
def test_images_are_small_pinned_and_without_secrets(image: Path) -> None:
    text = image.read_text().replace("\\\n", "")
    (base,) = re.findall(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    stages = re.findall(r"^FROM (\S+) AS (\w+)$", text, re.MULTILINE)
    assert stages[:2] == [("${BASE}", "build"), ("${BASE}", stages[1][1])]
    assert all(source in {"${BASE}", *(name for _, name in stages)} for source, _ in stages)
    # What is published has nothing of the stage that built it but the packages.
    build, installed = text.split("AS build")[1].split("FROM ", 1)
    assert "pip install" in build and "pip install" not in installed
    assert re.findall(r"^COPY --from=build (.+)$", installed, re.MULTILINE) == [
        "/opt/fedstill /opt/fedstill"
    ]
    users = re.findall(r"^USER (\d+)$", text, re.MULTILINE)
    assert len(users) == text.count("\nUSER ") and users[-1] == "10001"
    names = re.findall(r"^(?:ARG|ENV) (\w+)", text, re.MULTILINE)
    assert names and not [one for one in names if re.search("KEY|TOKEN|SECRET|PASSW", one)]
    assert instruction(text.replace(" CMD [", "\nHEALTH ["), "HEALTH")
    assert ":latest" not in text and not re.findall(r"^ADD ", text, re.MULTILINE)


def test_the_last_stage_of_the_sites_image_has_nothing_of_the_trial() -> None:
    text = (DEPLOY / "site" / "Dockerfile").read_text()
    assert text.rstrip().endswith("FROM installed AS site")
    assert "deploy/demo" not in text.split("FROM installed AS trial")[0]


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.parent.name)
def test_hadolint_has_nothing_against_the_dockerfiles(image: Path) -> None:
    linter = shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([linter, image], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_images_get_the_source_and_nothing_else() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    assert rules[0] == "*", "what is not named is left out"
    named = {rule[1:] for rule in rules if rule.startswith("!")}
    for image in IMAGES:
        for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", image.read_text(), re.MULTILINE):
            for source in sources.split():
                assert (ROOT / source).exists(), source
                top = source.split("/")[0]
                assert source in named or (top in named and top != "deploy"), source
    assert rules.index("deploy/*") < rules.index("!deploy/demo")


def test_users_are_numbered_as_the_tests_think() -> None:
    text = "".join(image.read_text() for image in IMAGES)
    for name, gid in (("fedstill", GROUP["fedstill"]), ("images", GROUP["images"])):
        assert f"groupadd --gid {gid} {name}" in text
    for name in ("worker", "connector", "importer", "fedstill"):
        assert re.search(rf"useradd --uid {ID[name]} .*--create-home {name}\b", text), name


@pytest.mark.parametrize("name", ["site", "aggregator"])
def test_what_the_images_copy_is_enough_to_build_and_start(name: str, tmp_path: Path) -> None:
    text = (DEPLOY / name / "Dockerfile").read_text().split("FROM ${BASE} AS ")[1]
    source, built = tmp_path / "src", tmp_path / "built"
    for sources, target in re.findall(r"^COPY (.*) (\S+)$", text, re.MULTILINE):
        for one in sources.split():
            place = source / target / ("" if target != "./" else one)
            place.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / one).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / one, place, ignore=ignored)
            else:
                shutil.copy(ROOT / one, place)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-compile", "--target", str(built)]
    done = subprocess.run([*pip, *quiet, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    given = {path.relative_to(source) for path in source.rglob("*/*") if path.is_file()}
    made = {path.relative_to(built) for path in built.rglob("*") if path.is_file()}
    packages = {path for path in given if path.parts[0] in ("shared", "site_agent", "aggregator")}
    assert packages and not packages - made, "pages, styles and migrations are packed too"
    program = "site-agent" if name == "site" else "aggregator"
    module = f"{'site_agent' if name == 'site' else 'aggregator'}.cli"
    # Isolated: what is imported is what was built, never the checkout.
    start = (
        f"import sys; sys.path.insert(0, {str(built)!r}); sys.argv = [{program!r}, '--help']\n"
        f"import {module} as cli; assert cli.__file__.startswith({str(built)!r}); cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", start], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_make_images_says_what_it_lacks_and_builds_each(tmp_path: Path) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    (tmp_path / "sh").symlink_to("/bin/sh")
    command = [make, "--no-print-directory", "-C", str(ROOT), "images"]
    bare = {"PATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=bare, check=False)
    assert done.returncode != 0
    assert "needs docker or podman; neither is on the PATH" in done.stderr
    podman = tmp_path / "podman"
    podman.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    podman.chmod(0o755)
    done = subprocess.run(
        [*command, "VARIANT=cuda"], capture_output=True, text=True, env=bare, check=False
    )
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [re.findall(r"-t (\S+)", line) for line in asked] == [
        ["fedstill-aggregator:cuda"],
        ["fedstill-site:cuda"],
        ["fedstill-site-trial:cuda"],
    ]
    assert all("--build-arg VARIANT=cuda" in line for line in asked)
    assert all("--format docker" in line for line in asked), "else podman drops the health checks"
    done = subprocess.run(
        [*command, "VARIANT=gpu"], capture_output=True, text=True, env=bare, check=False
    )
    assert "choose cpu or cuda" in done.stderr


@pytest.mark.parametrize("unit", UNITS.values(), ids=list(UNITS))
def test_units_run_commands_that_exist(unit: Path) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.read_text())
    program, command, *_ = parser["Service"]["ExecStart"].split()
    if unit != UNITS["edge"]:
        assert command in commands(Path(program).name)
    assert parser["Service"]["User"].startswith("fedstill")


def test_the_workers_unit_has_no_network() -> None:
    assert len(UNITS) == 6
    text = UNITS["worker"].read_text()
    assert "PrivateNetwork=yes" in text
    assert "RestrictAddressFamilies=AF_UNIX" in text


@pytest.mark.parametrize("name", ["importer", "pull"])
def test_the_importers_units_reach_nobody_until_told(name: str) -> None:
    text = UNITS[name].read_text()
    assert "IPAddressDeny=any\nIPAddressAllow=localhost\n" in text
    assert "InaccessiblePaths=-/var/lib/fedstill-worker -/var/lib/fedstill-connect" in text


def section(name: str) -> list[str]:
    return UNITS[name].read_text().splitlines()


def test_the_units_of_a_site_are_users_of_their_own_who_share_a_folder() -> None:
    users = {line for name in ("worker", "connect", "importer") for line in section(name)}
    users = {line for line in users if line.startswith("User=")}
    assert len(users) == 3
    assert {"Group=fedstill", "RuntimeDirectory=fedstill", "RuntimeDirectoryMode=0750"} <= set(
        section("worker")
    )
    assert {"SupplementaryGroups=fedstill", "Group=fedstill-connect"} <= set(section("connect"))
    assert not {line for line in section("connect") if line.startswith("RuntimeDirectory")}
    for name in UNITS:
        assert {
            "ProtectSystem=strict",
            "NoNewPrivileges=yes",
            "CapabilityBoundingSet=",
            "SystemCallFilter=@system-service",
            "RestrictNamespaces=yes",
        } <= set(section(name))


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not there")
def test_systemd_has_nothing_against_the_units(tmp_path: Path) -> None:
    for unit in sorted(DEPLOY.glob("*/systemd/*")):
        # What they start is installed elsewhere: here it is a command that is there.
        text = re.sub(r"ExecStart=\S+", "ExecStart=/usr/bin/true", unit.read_text())
        (tmp_path / unit.name).write_text(text)
    verify = ["systemd-analyze", "verify", *sorted(tmp_path.iterdir())]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    rate = ["systemd-analyze", "security", "--offline=true", "--threshold=20"]
    for name in UNITS:
        unit = tmp_path / f"fedstill-{name}.service"
        done = subprocess.run([*rate, unit], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout.splitlines()[-1]
