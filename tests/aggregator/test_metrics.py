"""What monitoring is told, and what it is never told."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aggregator.catalog import Catalog
from aggregator.home import AggregatorHome, create_home
from aggregator.journal_tally import JournalTally
from aggregator.metrics import AggregatorCollector, metrics_folder, monitored
from aggregator.release import publish
from aggregator.runs import prepare_run
from aggregator.supervisor import Service, Supervisor
from shared.contract import RunContract
from shared.metrics_server import PortError
from shared.processes import Process, spawn
from shared.release.keys import read_private_key
from site_agent.figures import Figures
from site_agent.monitoring import SiteCollector, _of_worker
from site_agent.settings import SiteSettings

ROOT = Path(__file__).parents[2]
CONTRACT = RunContract(name="ct-demo")
REFUSED = {"state": "refused", "reason": "a: refused: budget-spent (incident 3fa81c20)"}
API = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from fastapi.testclient import TestClient
from aggregator.api import create_app
with TestClient(create_app(Path(sys.argv[1]))) as client:
    for path in ("/datasets/fedstill/ct-demo/resolve/main/README.md",) * 3 + ("/CANARY", "/livez"):
        client.get(path)
    client.get("/api/datasets", headers={"Authorization": "Bearer CANARY"})
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def event(number: int, **more: object) -> str:
    return json.dumps({"time": 1.0, "phase": "probes", "round": number, **more}) + "\n"


@pytest.fixture
def home(tmp_path: Path) -> AggregatorHome:
    made = create_home(tmp_path / "home", {"superlink_port": 1, "metrics_port": free_port()})
    key = read_private_key(made.release_key)
    published = publish(home=made.root, contract=CONTRACT, files={"README.md": b"# x"}, key=key)
    catalog = Catalog(made.catalog)
    catalog.withdraw("fedstill", "ct-demo", published.number, "a test")
    catalog.close()
    publish(home=made.root, contract=CONTRACT, files={"README.md": b"# yy"}, key=key)
    run = prepare_run(made, CONTRACT, sites=["hospital-a"], public=None)
    state = {"state": "running", "since": time.time(), "round": 1, "rounds": 6}
    (run / "state.json").write_text(json.dumps(state))
    (run / "events.jsonl").write_text(
        event(1, sites={"a": REFUSED, "b": {"state": "answered"}})
        + event(1, sites={"a": REFUSED, "b": {"state": "late", "reason": "refused: CANARY"}})
        + event(1, sites={"c": {"state": "refused", "reason": "refused: canary"}})
        + event(1, ended={"seconds": 7.5, "asked": "anchor", "bytes_up": 10, "bytes_down": 30})
        + event(1, ended={"seconds": 9.5, "asked": "anchor", "bytes_up": 10, "bytes_down": 30})
        + event(2, ended={"seconds": 2.0, "asked": "probes", "loss": 0.25, "bytes_up": 5})
        + '{"round": 3, "en'
    )
    return made


@pytest.fixture
def supervisor(home: AggregatorHome) -> Supervisor:
    def start() -> list[Process]:
        return [spawn(["sleep", "60"], log=home.logs / "api.log")]

    return Supervisor([Service("api", start)], log=home.logs / "up.log")


def samples(text: str) -> dict[str, float]:
    """Value by name and labels, as ``name{label=value}``."""
    found = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(one.labels.items()))
            found[f"{one.name}{{{labels}}}" if labels else one.name] = one.value
    return found


def read(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        return str(answer.read().decode())


def test_monitoring_is_told_what_there_is(home: AggregatorHome, supervisor: Supervisor) -> None:
    metrics_folder(home).mkdir()
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(metrics_folder(home))}
    for _ in range(2):  # what an API that has ended counted is not forgotten
        subprocess.run([sys.executable, "-c", API, str(home.root)], env=environment, check=True)
    supervisor.begin()
    try:
        with monitored(home, supervisor):
            text = read(home.settings.metrics_port)
            assert read(home.settings.metrics_port, "/livez") == '{"alive": true}\n'
    finally:
        supervisor.end()
    found = samples(text)
    run = CONTRACT.digest()[:16]
    for name, value in {
        "fedstill_service_up{service=api}": 1,
        "fedstill_aggregator_check_passed{check=api}": 0,
        "fedstill_sites{state=online}": 0,
        "fedstill_runs{state=paused}": 1,  # nobody holds it
        f"fedstill_run_round{{run={run}}}": 1,
        f"fedstill_run_rounds{{run={run}}}": 6,
        f"fedstill_run_matching_loss{{run={run}}}": 0.25,
        "fedstill_rounds_total{kind=anchor}": 1,
        "fedstill_round_seconds_total{kind=anchor}": 7.5,
        "fedstill_round_seconds_total{kind=probes}": 2.0,
        "fedstill_round_bytes_total{direction=up}": 15,
        "fedstill_round_bytes_total{direction=down}": 30,
        "fedstill_answers_unused_total{code=budget-spent,reason=refused}": 1,
        "fedstill_answers_unused_total{code=,reason=refused}": 1,
        "fedstill_answers_unused_total{code=,reason=late}": 1,
        "fedstill_publishes_total": 2,
        "fedstill_withdrawals_total": 1,
        "fedstill_downloads_total": 6,
        "fedstill_download_bytes_total": 24,
        "fedstill_api_request_seconds_count{method=GET,route=/livez,status=2xx}": 2,
        "fedstill_api_request_seconds_count{method=GET,route=none,status=4xx}": 4,
    }.items():
        assert found[name] == value, name
    ends = found["fedstill_certificate_expiry_timestamp_seconds{certificate=server}"]
    assert 395 < (ends - time.time()) / 86_400 < 398
    assert found["fedstill_disk_free_bytes{place=home}"] > 0
    assert "canary" not in text.lower()
    assert "ct-demo" not in text and str(home.root) not in text
    routes = set(re.findall(r'route="([^"]*)"', text))
    assert "/datasets/{namespace}/{name}/resolve/{revision}/{path:path}" in routes


def test_a_journal_is_read_as_it_grows(home: AggregatorHome) -> None:
    tally = JournalTally()
    tally.read(home.runs)
    (file,) = home.runs.glob("*/events.jsonl")
    with file.open("a") as journal:
        journal.write('ded": 1}\n' + event(4, ended={"seconds": 1.0, "asked": "probes"}))
    tally.read(home.runs)
    tally.read(home.runs)
    assert tally.rounds == {"anchor": 1, "probes": 2}
    assert tally.seconds == {"anchor": 7.5, "probes": 3.0}


def test_a_port_that_is_taken_names_the_setting(
    home: AggregatorHome, supervisor: Supervisor
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", home.settings.metrics_port))
        taken.listen()
        with pytest.raises(PortError, match="metrics_port"), monitored(home, supervisor):
            pass


def exported(home: AggregatorHome, supervisor: Supervisor, tmp_path: Path) -> set[str]:
    """Names of all that the aggregator and a site export, as Prometheus stores them."""
    from aggregator.measure import REGISTRY, REQUESTS

    REQUESTS.labels("GET", "/livez", "2xx").observe(0.1)
    settings = SiteSettings(home=tmp_path, name="a", aggregator="localhost:1", images=tmp_path)
    figures = Figures(
        version="1",
        started=0,
        policy_valid=True,
        cohort_present=True,
        patients_at_least=5,
        events={"request answered": 1},
        refusals={"policy": 1},
        answer_bytes=1,
        answer_seconds=1,
    )
    metrics_folder(home).mkdir(exist_ok=True)
    families = [
        *AggregatorCollector(home, supervisor).collect(),
        *REGISTRY.collect(),
        *SiteCollector(settings).collect(),
        *_of_worker(figures),
    ]
    names = {one.name for family in families for one in family.samples}
    return (
        names
        | {f"{one.name}_total" for one in families if one.type == "counter"}
        | {one.name for one in families if one.type == "gauge"}
    )


def test_the_dashboard_asks_for_what_is_exported_and_for_all_of_it(
    home: AggregatorHome, supervisor: Supervisor, tmp_path: Path
) -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "fedstill.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    queried = {name for query in asked for name in re.findall(r"\bfedstill_\w+", query)}
    there = exported(home, supervisor, tmp_path)
    assert queried <= there, f"no such metric: {queried - there}"
    assert len(queried) > 25
    # Positive control: a name that is nearly right is found.
    assert "fedstill_downloads" not in there and "fedstill_downloads_total" in there


def test_every_metric_of_the_aggregator_is_documented(
    home: AggregatorHome, supervisor: Supervisor
) -> None:
    from aggregator.measure import REGISTRY

    metrics_folder(home).mkdir()
    page = (ROOT / "docs" / "deployment.md").read_text()
    for one in [*AggregatorCollector(home, supervisor).collect(), *REGISTRY.collect()]:
        name = f"{one.name}_total" if one.type == "counter" else one.name
        assert f"| `{name}" in page, name


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "fedstill.json").read_text())
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", dashboard["uid"])
    assert dashboard["title"] and dashboard["schemaVersion"] >= 36
    (source,) = dashboard["templating"]["list"]
    assert (source["name"], source["type"]) == ("datasource", "datasource")
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 20
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["type"] in ("stat", "timeseries")
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        letters = [target["refId"] for target in panel["targets"]]
        assert letters and len(set(letters)) == len(letters)
        for target in panel["targets"]:
            query = target["expr"]
            assert query.count("(") == query.count(")") and query.count("{") == query.count("}")
            assert target["datasource"] == panel["datasource"]
