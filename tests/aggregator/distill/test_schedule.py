import pytest

from aggregator.distill.schedule import ask_of_round
from shared.contract import Anchor, Probes, RunContract


def test_anchor_rounds_come_first_then_probes() -> None:
    contract = RunContract(name="ct", anchor=Anchor(rounds=2), probes=Probes(requests=1))
    asks = [ask_of_round(contract, number) for number in (1, 2, 3)]
    assert [ask.kind for ask in asks] == ["local-steps", "local-steps", "gradients"]
    assert [ask.network for ask in asks] == ["anchor", "anchor", "student"]


@pytest.mark.parametrize("number", [0, 4])
def test_there_is_no_round_outside(number: int) -> None:
    contract = RunContract(name="ct", anchor=Anchor(rounds=2), probes=Probes(requests=1))
    with pytest.raises(ValueError, match=r"not in 1\.\.3"):
        ask_of_round(contract, number)


def test_probe_requests_go_through_the_networks_in_turn() -> None:
    contract = RunContract(
        name="ct",
        anchor=Anchor(rounds=1),
        probes=Probes(requests=3, networks=("anchor", "student")),
    )
    asks = [ask_of_round(contract, number) for number in range(1, 5)]
    assert [ask.network for ask in asks] == ["anchor", "anchor", "student", "anchor"]
