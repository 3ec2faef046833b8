"""Sites that are killed, frozen, cut off, late, that refuse or send nonsense; briefly.

For as long as hospitals may be away: python tests/benchmarks/faults.py.
"""

import secrets
from collections.abc import Iterator

import pytest

from shared.processes import become_subreaper, stop_all
from tests.e2e import faults
from tests.e2e.deployment import Deployment, marked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


@pytest.fixture
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[faults.Federation]:
    become_subreaper()
    deployment = Deployment(tmp_path_factory.mktemp("faults"), secrets.token_hex(8))
    try:
        with faults.federation(deployment) as there:
            yield there
    finally:
        stop_all(list(deployment.processes.values()), grace_s=10)
        assert marked(deployment.token) == []


def test_every_fault_of_a_site_ends_as_the_docs_say(federation: faults.Federation) -> None:
    # Longer than a node counts as online without a heartbeat.
    found = faults.site_faults(federation, frozen_s=34, cut_s=34)
    assert {one.fault: one.problems for one in found if one.problems} == {}
    assert len(found) == 7
    by_end = {one.ends for one in found}
    assert by_end == {"answered", "late, then answered", "refused", "rejected"}
    why = " ".join(one.reason for one in found)
    for words in (
        "killed is not connected, waited",
        "frozen is not connected, waited",
        "odd has not answered within 8 s: the round's deadline",
        "odd: refused: policy (incident 000000000000)",
        "odd: values are not finite",
    ):
        assert words in why
    # What vanished did vanish.
    assert all(wire.swallowed for wire in federation.wires.values())
