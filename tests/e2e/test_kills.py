"""The aggregator's programs killed at moments that are drawn, in a run that is judged.

Ten times each: python tests/benchmarks/faults.py.
"""

import json
import secrets
from collections.abc import Iterator

import pytest

from shared.processes import become_subreaper, stop_all
from tests.e2e import kills
from tests.e2e.deployment import Deployment, marked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


@pytest.fixture
def aggregator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    become_subreaper()
    deployment = Deployment(tmp_path_factory.mktemp("kills"), secrets.token_hex(8))
    try:
        with kills.aggregator(deployment):
            yield deployment
    finally:
        stop_all(list(deployment.processes.values()), grace_s=10)
        assert marked(deployment.token) == []


def test_a_run_ends_the_same_whatever_is_killed(aggregator: Deployment) -> None:
    programs: list[kills.Program] = [
        "serverapp",
        "api",
        "superlink",
        "serverapp",
        "api",
        "executor",
    ]
    done = kills.kills(aggregator, programs, seed=1, within=0.5)
    assert sorted(one.program for one in done) == sorted(programs)
    # What was compared is what hospitals said, and it was published.
    (run,) = [one for one in aggregator.home.runs.iterdir() if len(one.name) == 16]
    rows = json.loads((run / "utility.json").read_text())["rows"]
    assert rows["distilled"]["measured_at"] == "hospitals"
    assert rows["distilled"]["psnr"]["mean"] > rows["prior"]["psnr"]["mean"]
