import pytest

from shared.contract import Anchor, RunContract
from site_agent.policy import Policy, contract_violation, request_violation


def test_the_default_policy_allows_the_default_contract():
    contract = RunContract(name="x")
    assert contract_violation(Policy(), contract, parameters=40_000) is None
    assert request_violation(Policy(), contract, round=contract.rounds, probes=64) is None


@pytest.mark.parametrize(
    ("policy", "named"),
    [
        (Policy(min_patients=6), "min_patients"),
        (Policy(max_local_steps=199), "max_local_steps"),
        (Policy(max_parameters=39_999), "max_parameters"),
        (Policy(tasks=()), "tasks"),
        (Policy(granularities=()), "granularities"),
    ],
)
def test_each_limit_refuses_a_contract(policy, named):
    contract = RunContract(name="x", min_patients=5, anchor=Anchor(local_steps=200))
    violation = contract_violation(policy, contract, parameters=40_000)
    assert violation is not None and named in violation


def test_local_steps_do_not_matter_where_the_contract_asks_for_none():
    contract = RunContract(name="x", anchor=Anchor(rounds=0, local_steps=5000))
    assert contract_violation(Policy(max_local_steps=0), contract, parameters=1) is None


def test_requests_end_with_the_contracts_rounds():
    contract = RunContract(name="x")
    assert request_violation(Policy(), contract, round=contract.rounds + 1, probes=1)
    assert request_violation(Policy(max_probes=3), contract, round=1, probes=4)
