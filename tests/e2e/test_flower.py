"""The real thing on loopback: SuperLink with TLS and node keys, SuperNodes, and fake workers."""

import hashlib
import json
import os
import secrets
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.cli.build import build_fab_from_files

from aggregator.lifecycle import read_state
from aggregator.runs import is_held
from aggregator.superlink import SuperLink, SuperLinkError, superlink
from shared.contract import RunContract
from shared.guardian import descendants
from shared.messages import RefusalHeader, SummaryHeader, decode, encode, probe_batch
from shared.processes import become_subreaper, spawn, stop_all, wait_for_line
from site_agent.enrolment import enrol
from tests.e2e.deployment import BINARIES, Deployment, command_line, free_port, marked, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

SITES = ("st-anna", "st-bruno")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    become_subreaper()
    built = Deployment(tmp_path_factory.mktemp("flower"), secrets.token_hex(8))
    try:
        built.init()
        # One site before the start, the other after it.
        assert not built.enrol(SITES[0])["registered"]
        built.up()
        assert built.enrol(SITES[1])["registered"]
        built.connect(*SITES)
        yield built
    finally:
        stop_all(list(built.processes.values()), grace_s=10)
        assert marked(built.token) == []


def launch(deployment: Deployment, contract: Path) -> dict[str, Any]:
    result = deployment.aggregator("launch", contract, "--json")
    assert result.returncode == 0, result.stderr
    release: dict[str, Any] = json.loads(result.stdout)
    return release


def rounds_done(run: Path) -> int:
    try:
        lines = (run / "events.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return max((json.loads(line)["round"] for line in lines), default=0)


def test_a_paused_run_goes_on_and_ends_with_the_same_digest(
    deployment: Deployment,
) -> None:
    contract, run = deployment.contract(seed=1)
    release = launch(deployment, contract)
    result = json.loads((run / "result.json").read_text())
    assert result["rounds"] == 4
    assert set(result["sites"]) == set(SITES)
    assert launch(deployment, contract) == release  # nothing is done twice

    # Paused after a round; how it goes on after a kill is tests/e2e/test_kills.py.
    run.rename(run.with_name("uninterrupted"))
    hold = deployment.root / SITES[0] / "hold"
    hold.write_text("2")
    with deployment.launching(contract) as watching:
        until(lambda: rounds_done(run) == 2, within_s=100)
        assert deployment.aggregator("run", "pause", run.name).returncode == 0
        assert read_state(run).state == "stopping"
        hold.unlink()
        assert watching.stderr is not None
        assert "the run is paused: pause was asked" in watching.stderr.read()
    assert watching.returncode == 1
    assert (read_state(run).state, read_state(run).round) == ("paused", 2)

    hold.write_text("3")
    with deployment.launching(contract) as watching:
        until(lambda: rounds_done(run) == 3, within_s=100)
        check_site_processes(deployment)
        hold.unlink()
        assert watching.wait(150) == 0
    assert not (run / "error.log").exists()
    again = launch(deployment, contract)
    assert (again["digest"], again["version"]) == (release["digest"], release["version"])
    assert read_state(run).state == "published"


def check_site_processes(deployment: Deployment) -> None:
    """While a request is with the worker: no process of the SuperNode has torch or an image."""
    images = deployment.root / "images" / SITES[0]
    node = deployment.processes[f"node-{SITES[0]}"].pid
    (executor,) = [p for p in descendants(node) if "site_agent.superexec" in command_line(p)]
    until(lambda: len(descendants(executor)) == 1, within_s=60)
    (clientapp,) = descendants(executor)
    for pid in (*descendants(node), clientapp):
        try:
            assert not maps_torch(pid)
            assert not has_open_below(pid, images)
        except FileNotFoundError:
            assert pid not in (executor, clientapp)  # those two wait for the worker
    with (images / "canary.dcm").open("wb"):  # the checks do find what they look for
        assert torch.__version__
        assert maps_torch(os.getpid())
        assert has_open_below(os.getpid(), images)


def maps_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def has_open_below(pid: int, folder: Path) -> bool:
    links = list(Path(f"/proc/{pid}/fd").iterdir())
    return any(str(link.readlink()).startswith(str(folder)) for link in links if link.is_symlink())


FOREIGN_CLIENT = """
import os
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
@app.query("summarise")
def summarise(message, context):
    name = os.environ.get("FEDSTILL_SITE", "stock")
    (Path(context.run_config["folder"]) / f"ran-at-{name}").touch()
    return Message(RecordDict({"answer": ConfigRecord({"payload": b"foreign"})}), reply_to=message)
"""
FOREIGN_SERVER = """
import json, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
def ask(grid, kind, payload):
    nodes = {node.node_id: node.name for node in grid.get_nodes()}
    content = lambda: RecordDict({"request": ConfigRecord({"payload": payload})})
    sent = list(grid.push_messages([Message(content(), n, kind) for n in nodes]))
    asked, answers, end = dict(zip(sent, nodes.values())), {}, time.time() + 60
    while asked and time.time() < end:
        for reply in grid.pull_messages(list(asked)):
            name = asked.pop(reply.metadata.reply_to_message_id)
            if reply.has_error():
                answers[name] = "error: " + reply.error.reason
            else:
                answers[name] = reply.content["answer"]["payload"].hex()
        time.sleep(0.2)
    return answers
@app.main()
def main(grid, context):
    folder = Path(context.run_config["folder"])
    payload = (folder / "request").read_bytes()
    answers = [ask(grid, "query.summarise", payload), ask(grid, "query.summarise", b"junk")]
    answers.append(ask(grid, "train", payload))
    (folder / "answers.part").write_text(json.dumps(answers))
    (folder / "answers.part").rename(folder / "answers")
"""
FOREIGN_PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "foreign"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "somebody"
[tool.flwr.app.components]
serverapp = "foreign_server:app"
clientapp = "site_agent.clientapp:app"
[tool.flwr.app.config]
folder = ""
"""


def foreign_bundle() -> bytes:
    """A bundle that carries a ``site_agent`` of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        bundle, _ = build_fab_from_files(
            {
                "pyproject.toml": FOREIGN_PROJECT.encode(),
                "foreign_server.py": FOREIGN_SERVER.encode(),
                "site_agent/__init__.py": b"",
                "site_agent/clientapp.py": FOREIGN_CLIENT.encode(),
            }
        )
    return bytes(bundle)


def start_stock_node(deployment: Deployment) -> None:
    """The control: a SuperNode as Flower delivers it, enrolled like the others."""
    folder = deployment.root / "stock"
    port = deployment.home.settings.superlink_port
    enrol(home=folder, name="stock", aggregator=f"localhost:{port}", images=folder)
    assert deployment.aggregator("site", "add", folder / "enrolment.json").returncode == 0
    (folder / "flwr").mkdir()
    process = spawn(
        [
            *(str(BINARIES / "flower-supernode"), "--superlink", f"localhost:{port}"),
            *("--root-certificates", str(deployment.home.tls / "ca.crt")),
            *("--auth-supernode-private-key", str(folder / "keys" / "flower")),
            *("--port", str(free_port())),
        ],
        log=deployment.root / "stock.log",
        env={
            **deployment.environment,
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "PATH": f"{BINARIES}:{os.environ['PATH']}",
        },
    )
    deployment.processes["stock"] = process
    wait_for_line(process, "SuperNode ID", timeout_s=60)


def test_code_that_a_bundle_carries_does_not_run_at_a_site(deployment: Deployment) -> None:
    start_stock_node(deployment)
    folder = deployment.root / "foreign"
    folder.mkdir()
    request = probe_batch(
        contract=RunContract(name="any"),
        round=1,
        kind="gradients",
        network="student",
        weights=np.zeros((1, 3), np.float32),
    )
    (folder / "request").write_bytes(encode(request))
    bundle = foreign_bundle()
    with superlink(deployment.home) as link:
        link.start(
            bundle=bundle,
            digest=hashlib.sha256(bundle).hexdigest(),
            config={"folder": str(folder)},
        )
    until((folder / "answers").exists, within_s=120)
    stop_all([deployment.processes.pop("stock")], grace_s=8)
    probe, junk, train = json.loads((folder / "answers").read_text())
    assert [path.name for path in folder.glob("ran-at-*")] == ["ran-at-stock"]
    assert bytes.fromhex(probe.pop("stock")) == b"foreign"
    for name in SITES:
        summary = decode(bytes.fromhex(probe[name])).header
        assert isinstance(summary, SummaryHeader)
        assert summary.site == name
        refused = decode(bytes.fromhex(junk[name])).header
        assert isinstance(refused, RefusalHeader)
        assert train[name] == "error: the site could not answer; see its log"
    assert not list(deployment.root.glob("st-*/flower/apps"))  # nothing was even unpacked


def test_a_killed_executor_is_replaced_and_a_killed_dry_run_asked_again(
    deployment: Deployment,
) -> None:
    def running(word: str) -> set[int]:
        below = descendants(deployment.processes["up"].pid)
        lines = {pid: command_line(pid) for pid in below}
        return {pid for pid, line in lines.items() if word in line and "guardian.py" not in line}

    contract, run = deployment.contract(seed=7)
    (executor,) = running("aggregator.executor 127.0.0.1:")
    os.kill(executor, signal.SIGKILL)
    until(lambda: running("aggregator.executor 127.0.0.1:") - {executor}, within_s=30)
    with superlink(deployment.home) as link:
        until(lambda: online(link) == set(SITES), within_s=60)
    asking = run.with_name(f"dry-{run.name}")
    sites = [part for site in SITES for part in ("--site", site)]  # others may be enrolled by now
    with deployment.launching(contract, "--dry-run", "--json", *sites) as launcher:
        until(lambda: is_held(asking) or launcher.poll() is not None, within_s=60)
        (killed,) = running("flwr-serverapp")
        os.kill(killed, signal.SIGKILL)
        said, told = launcher.communicate(timeout=100)
    assert launcher.returncode == 0, told
    verdicts = {one["site"]: one["verdict"] for one in json.loads(said)["sites"]}
    assert verdicts == dict.fromkeys(SITES, "accept")


def online(link: SuperLink) -> set[str]:
    try:
        return {node.name for node in link.nodes() if node.online}
    except SuperLinkError:
        return set()


def test_a_killed_aggregator_leaves_nothing_and_comes_back(deployment: Deployment) -> None:
    up = deployment.processes.pop("up")
    below = descendants(up.pid)
    assert len(below) >= 3
    supervisor = next(pid for pid in below if "aggregator up" in command_line(pid))
    os.kill(supervisor, signal.SIGKILL)
    start = time.monotonic()
    until(lambda: not any(command_line(pid) for pid in below), within_s=10)
    stop_all([up], grace_s=1)
    deployment.up()
    with superlink(deployment.home) as link:
        until(lambda: online(link) == set(SITES), within_s=60)
    assert time.monotonic() - start < 80


def answering(node: int) -> bool:
    """Whether a ClientApp of the SuperNode below ``node`` waits for its worker."""
    executors = [pid for pid in descendants(node) if "site_agent.superexec" in command_line(pid)]
    return any(descendants(executor) for executor in executors)


def test_a_revoked_site_cannot_answer_even_what_it_was_asked_before(
    deployment: Deployment,
) -> None:
    staying, leaving = SITES[0], "st-clara"
    deployment.enrol(leaving)
    deployment.connect(leaving)
    contract, run = deployment.contract(seed=2)
    hold = deployment.root / leaving / "hold"
    hold.write_text("2")
    node = deployment.processes[f"node-{leaving}"]
    sites = ["--site", staying, "--site", leaving]
    watching = subprocess.Popen(
        [BINARIES / "aggregator", "launch", contract, *sites, "--home", deployment.home.root],
        env=deployment.environment,
    )
    with watching:
        # The first round it answers, the control; of the second its ClientApp is at work.
        until(lambda: rounds_done(run) == 2 and answering(node.pid), within_s=120)
        revoked = deployment.aggregator("site", "revoke", leaving, "--json")
        assert json.loads(revoked.stdout) == {"name": leaving, "new": True, "applied": True}
        hold.unlink()
    assert watching.returncode == 0
    releases = json.loads((run / "result.json").read_text())["sites"]
    assert releases[leaving]["releases"] == 1 < releases[staying]["releases"]
    until(lambda: "does not accept this site's key" in "".join(node.lines()), within_s=60)
    with superlink(deployment.home) as link:
        assert leaving not in {site.name for site in link.nodes()}
    refused = deployment.aggregator("launch", contract, "--site", leaving)
    assert f"not enrolled: {leaving} (revoked)" in refused.stderr
    deployment.disconnect(leaving)


def test_a_site_revoked_while_the_superlink_is_down_is_never_accepted_again(
    deployment: Deployment,
) -> None:
    leaving = "st-dora"
    deployment.enrol(leaving)
    deployment.connect(leaving)
    stop_all([deployment.processes.pop("up")], grace_s=15)
    revoked = deployment.aggregator("site", "revoke", leaving, "--json")
    assert not json.loads(revoked.stdout)["applied"]
    deployment.up()
    node = deployment.processes[f"node-{leaving}"]
    until(lambda: "does not accept this site's key" in "".join(node.lines()), within_s=60)
    listed = json.loads(deployment.aggregator("site", "list", "--json").stdout)["sites"]
    states = {site["name"]: site["state"] for site in listed}
    assert states[leaving] == "revoked" and states[SITES[0]] != "revoked"
    deployment.disconnect(leaving)
    with superlink(deployment.home) as link:
        until(lambda: set(SITES) <= {n.name for n in link.nodes() if n.online}, within_s=60)
