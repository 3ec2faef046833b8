from typing import get_args

import pytest

from shared.architectures import FAMILIES
from shared.contract import Anchor, Privacy, Probes, RunContract
from shared.tasks.settings import CtDenoise, CtSr, MrDenoise, MrSr, MultiTask, SingleTask
from site_agent.policy import (
    PhysicalTask,
    Policy,
    contract_violation,
    modality_violation,
    privacy_violation,
    request_violation,
)


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
        (Policy(networks=("dncnn",)), "networks"),
        (Policy(max_rounds=5), "max_rounds"),
        (Policy(max_probe_clip=0.049), "max_probe_clip"),
        (Policy(max_anchor_clip=2.9), "max_anchor_clip"),
    ],
)
def test_each_limit_refuses_a_contract(policy, named):
    contract = RunContract(name="x", min_patients=5, anchor=Anchor(local_steps=200))
    violation = contract_violation(policy, contract, parameters=40_000)
    assert violation is not None and named in violation


def test_local_steps_do_not_matter_where_the_contract_asks_for_none():
    contract = RunContract(name="x", anchor=Anchor(rounds=0, local_steps=5000))
    assert contract_violation(Policy(max_local_steps=0), contract, parameters=1) is None


def test_clipping_does_not_matter_where_nothing_of_its_kind_is_asked():
    contract = RunContract(name="x", anchor=Anchor(rounds=0))
    assert contract_violation(Policy(max_anchor_clip=1e-9), contract, parameters=1) is None


def test_policy_knows_every_kind_of_network_and_allows_it_by_default():
    assert set(Policy().networks) == set(FAMILIES)


def test_requests_end_with_the_contracts_rounds():
    contract = RunContract(name="x")
    assert request_violation(Policy(), contract, round=contract.rounds + 1, probes=1)
    assert request_violation(Policy(max_probes=3), contract, round=1, probes=4)


def test_policy_knows_every_task_and_allows_it_by_default():
    union, _ = get_args(SingleTask)
    names = {get_args(task.model_fields["name"].annotation)[0] for task in get_args(union)}
    assert set(get_args(PhysicalTask)) == names == set(Policy().tasks)


def test_a_multi_task_is_its_parts():
    contract = RunContract(name="x", task=MultiTask(parts=(CtDenoise(), CtSr())))
    assert contract_violation(Policy(), contract, parameters=1) is None
    violation = contract_violation(Policy(tasks=("ct-denoise",)), contract, parameters=1)
    assert violation is not None and "ct-sr" in violation


def test_patients_one_by_one_only_where_the_site_lists_them():
    contract = RunContract(name="x", granularity="patient")
    violation = contract_violation(Policy(), contract, parameters=1)
    assert violation is not None and "granularity patient" in violation
    allowing = Policy(granularities=("cohort", "patient"))
    assert contract_violation(allowing, contract, parameters=1) is None


def test_a_secure_sum_is_allowed_unless_the_site_lists_others():
    contract = RunContract(name="x", granularity="federation")
    assert contract_violation(Policy(), contract, parameters=1) is None
    violation = contract_violation(Policy(granularities=("cohort",)), contract, parameters=1)
    assert violation is not None and "granularity federation" in violation


@pytest.mark.parametrize(
    ("task", "offered", "indexed", "said"),
    [
        (CtDenoise(), "CT", "CT", None),
        (MrSr(), "MR", "MR", None),
        (MultiTask(parts=(MrSr(), MrDenoise())), "MR", "MR", None),
        (MrSr(), "CT", "CT", "the contract is for MR, site.toml offers CT"),
        (CtDenoise(), "MR", "CT", "the contract is for CT, site.toml offers MR"),
        (MrSr(), "MR", "CT", "the cohort holds CT: run `site-agent index`"),
    ],
)
def test_a_cohort_of_another_modality_is_named(task, offered, indexed, said):
    violation = modality_violation(
        RunContract(name="x", task=task), offered=offered, indexed=indexed
    )
    assert violation is None if said is None else said in violation


def private(**privacy):
    return RunContract(
        name="x",
        granularity="federation",
        anchor=Anchor(descent="patient"),
        privacy=Privacy(**privacy),
    )


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({}, None),
        ({"max_epsilon": 3.0, "epsilon_budget": 3.0}, None),
        ({"max_epsilon": 2.9}, "privacy.epsilon 3 exceeds policy.max_epsilon 2.9"),
        ({"delta": 1e-6}, "privacy.delta 1e-05 exceeds policy.delta 1e-06"),
    ],
)
def test_noise_that_is_too_weak_for_the_site_is_named(limits, said):
    assert privacy_violation(Policy(**limits), private(epsilon=3.0)) == said


@pytest.mark.parametrize("limit", ["max_epsilon", "epsilon_budget"])
def test_a_limit_on_epsilon_refuses_what_has_none(limit):
    clear = RunContract(name="x", probes=Probes(requests=0))
    violation = contract_violation(Policy(**{limit: 1000.0}), clear, parameters=1)
    assert violation is not None and f"policy.{limit}" in violation


def test_noise_of_others_counts_as_far_as_the_site_trusts_them():
    contract = private(epsilon=3.0, noise="distributed", honest=0.6)
    violation = privacy_violation(Policy(), contract)
    assert violation == "privacy.honest 0.6 exceeds policy.max_honest 0.5"
    assert privacy_violation(Policy(max_honest=0.6), contract) is None
    assert privacy_violation(Policy(), private(epsilon=3.0, honest=0.6)) is None
