from typing import Any

import pytest

from aggregator.privacy_report import Attacks, claim, privacy_facts, privacy_page
from shared.accounting import Spent, epsilon_of
from shared.contract import RunContract

RESULT = {"rounds": 6, "releases": 10}
NOISED = {"anchor": {"descent": "patient"}, "privacy": {"epsilon": 3.0, "delta": 1e-5}}


def contract(**fields: Any) -> RunContract:
    return RunContract.model_validate({"name": "demo", **fields})


def facts_of(one: RunContract, **result: Any) -> dict[str, Any]:
    return privacy_facts(
        contract=one, result={**RESULT, **result}, prior={"kind": "phantom"}, attacks=None
    )


@pytest.mark.parametrize("granularity", ["patient", "cohort", "federation"])
def test_without_noise_no_privacy_is_claimed(granularity: str) -> None:
    one = contract(granularity=granularity)
    assert "no privacy is claimed" in claim(one)
    assert "differential" not in claim(one)
    facts = facts_of(one)
    assert facts["dp"] is None
    assert facts["claim"] in privacy_page(facts)
    assert "| differential privacy | none |" in privacy_page(facts)


@pytest.mark.parametrize("granularity", ["patient", "cohort", "federation"])
def test_with_noise_epsilon_and_delta_are_named(granularity: str) -> None:
    one = contract(granularity=granularity, **NOISED)
    assert "(3, 1e-05)-differentially private for each patient" in claim(one)
    facts = facts_of(one)
    assert facts["dp"]["unit"] == "patient"
    assert facts["dp"]["releases"] == 6
    # No more than promised, and no less than what the contract's noise gives.
    assert 2.9 < facts["dp"]["epsilon"] <= 3.0
    assert "ε = " in privacy_page(facts)


def test_a_cohort_claims_its_minimum_and_a_patient_nothing() -> None:
    assert "a mean over at least 7 of its patients" in claim(contract(min_patients=7))
    assert "single patients" in claim(contract(granularity="patient"))
    # Without probes no gradient of a single patient leaves.
    assert "single patients" not in claim(contract(granularity="patient", probes={"requests": 0}))


def test_a_secure_sum_names_what_it_relies_on() -> None:
    text = claim(contract(granularity="federation"))
    assert "as long as the named members are hospitals that follow the protocol" in text
    fields = {
        **NOISED,
        "granularity": "federation",
        "privacy": {"epsilon": 3.0, "noise": "distributed", "honest": 0.5},
    }
    assert "at least 50% of the members added their share" in claim(contract(**fields))
    assert "at least" not in claim(contract(**{**NOISED, "granularity": "federation"}))


def test_rounds_that_were_repeated_cost_more_than_the_contract_says() -> None:
    one = contract(granularity="federation", **NOISED)
    repeated = facts_of(one, attempts=9)["dp"]
    assert repeated["releases"] == 9
    multiplier = one.noise_multiplier
    assert multiplier is not None
    spent = Spent(noise_multiplier=multiplier, sampling=1.0, releases=9)
    assert repeated["epsilon"] == pytest.approx(epsilon_of([spent], delta=1e-5), abs=1e-4)
    assert repeated["epsilon"] > 3


def test_what_was_not_measured_is_said_to_be_so() -> None:
    facts = facts_of(contract())
    assert facts["attacks"] is None
    assert "No attack was run against this release" in privacy_page(facts)


FOUND = {
    "format": "fedstill-attacks/1",
    "quick": True,
    "split": "reporting",
    "sites": {"the-name-of-a-hospital": 11},
    "attacks": {
        "inversion": {
            "rows": [{"mode": "cohort", "psnr": {"mean": 0.2, "interval": [-0.1, 0.5]}}],
            "control": {"mode": "one slice", "psnr": {"mean": 4.0, "interval": [3.0, 5.0]}},
            "control_succeeded": True,
            "passed": True,
            "seconds": 12.5,
        }
    },
}


def test_what_attacks_found_is_told_without_names_and_times() -> None:
    one = contract()
    attacks = Attacks.model_validate({**FOUND, "foundation": one.foundation()})
    facts = privacy_facts(contract=one, result=RESULT, prior={}, attacks=attacks)
    page = privacy_page(facts)
    assert "| cohort | 0.200 [-0.100, 0.500] |" in page
    assert "| one slice | 4.000 [3.000, 5.000] |" in page
    assert "Within its bar." in page
    assert "a longer one may find more" in page
    assert "the-name-of-a-hospital" not in page + str(facts)
    assert "12.5" not in str(facts)


def test_a_control_that_failed_is_not_hidden() -> None:
    found = {**FOUND["attacks"]["inversion"], "control_succeeded": False, "passed": False}  # type: ignore[index]
    attacks = Attacks.model_validate(
        {**FOUND, "foundation": contract().foundation(), "attacks": {"inversion": found}}
    )
    page = privacy_page(
        privacy_facts(contract=contract(), result=RESULT, prior={}, attacks=attacks)
    )
    assert "The control did not succeed" in page
    assert "**Beyond its bar.**" in page


def test_attacks_nobody_knows_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown attacks: magic"):
        Attacks.model_validate(
            {**FOUND, "foundation": "0" * 64, "attacks": {"magic": {"rows": []}}}
        )
