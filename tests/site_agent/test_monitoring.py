import http.client
import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from shared.metrics_server import PortError
from site_agent import monitoring
from site_agent.enrolment import enrol
from site_agent.events import Tally
from site_agent.figures import QUESTION, ask_figures, figures_of
from site_agent.frames import recv_frame, send_frame
from site_agent.monitoring import monitored


@pytest.fixture
def settings(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = enrol(home=tmp_path / "home", name="a", aggregator="localhost:1", images=tmp_path)
    return made.model_copy(update={"metrics_port": port})


@pytest.fixture
def worker(settings):
    """A stand-in that answers on the figures' socket; gives its figures, to be changed."""
    told = {"policy_valid": True, "cohort_present": True, "patients_at_least": 5}
    tally = Tally()
    tally.refusals["policy"] = 2
    tally.events["request refused"] = 2
    tally.answer_bytes = 1000
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(settings.figures_path))
        listener.listen()

        def answer():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    assert recv_frame(connection, limit=100) == QUESTION
                    send_frame(connection, figures_of(tally, version="1.2", **told))

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield told
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    settings.figures_path.unlink()


def get(settings, path, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", settings.metrics_port, timeout=10)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, body


def contact(settings, *, ago_s=0.0):
    settings.contact_path.parent.mkdir(exist_ok=True)
    settings.contact_path.touch()
    then = time.time() - ago_s
    os.utime(settings.contact_path, (then, then))


def test_ready_is_who_has_all_that_a_request_needs(settings, worker):
    with monitored(settings):
        assert get(settings, "/livez")[0] == 200
        contact(settings)
        assert get(settings, "/readyz")[0] == 200
        for lost in ("policy_valid", "cohort_present"):
            worker[lost] = False
            status, body = get(settings, "/readyz")
            assert status == 503
            failed = [name for name, good in json.loads(body)["checks"].items() if not good]
            assert failed == [lost.partition("_")[0]]
            worker[lost] = True
        contact(settings, ago_s=monitoring.CONTACT_WITHIN_S + 1)
        status, body = get(settings, "/readyz")
        assert status == 503 and not json.loads(body)["checks"]["aggregator"]


def test_without_a_worker_it_lives_and_is_not_ready(settings):
    contact(settings)
    with monitored(settings):
        assert get(settings, "/livez")[0] == 200
        status, body = get(settings, "/readyz")
        assert status == 503
        assert json.loads(body)["checks"] == {
            "worker": False,
            "cohort": False,
            "policy": False,
            "aggregator": True,
        }
        text = get(settings, "/metrics")[1]
    assert "fedstill_ready 0.0" in text and "fedstill_refusals" not in text


def test_metrics_are_the_workers_counts_and_name_nobody(settings, worker):
    contact(settings)
    with monitored(settings):
        status, text = get(settings, "/metrics")
    assert status == 200
    for line in (
        "fedstill_ready 1.0",
        'fedstill_refusals_total{code="policy"} 2.0',
        'fedstill_events_total{event="request refused",part="worker"} 2.0',
        "fedstill_answer_bytes_total 1000.0",
        "fedstill_patients_at_least 5.0",
        'fedstill_worker_info{version="1.2"} 1.0',
    ):
        assert line in text
    assert str(settings.home) not in text and "localhost" not in text


def test_only_three_paths_only_read_only_on_loopback(settings):
    with monitored(settings):
        assert get(settings, "/metrics/../site.toml")[0] == 404
        assert get(settings, "/livez", method="POST")[0] == 501
        ours = f"{settings.metrics_port:04X}"
        table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        listening = [line[1] for line in table if line[3] == "0A"]
        assert [address for address in listening if address.endswith(f":{ours}")] == [
            f"0100007F:{ours}"
        ]


def test_no_port_no_server_and_a_taken_one_is_named(settings):
    with monitored(settings.model_copy(update={"metrics_port": 0})) as port:
        assert port == 0
    with (
        monitored(settings),
        pytest.raises(PortError, match="metrics_port"),
        monitored(settings),
    ):
        pass


def test_a_worker_that_says_something_else_has_no_figures(tmp_path):
    assert ask_figures(tmp_path / "figures.sock") is None
