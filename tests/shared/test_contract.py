import hashlib
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from shared.accounting import Spent, epsilon_of
from shared.contract import (
    Anchor,
    ContractError,
    Evaluation,
    Privacy,
    Probes,
    RunContract,
    read_contract,
)
from shared.frozen import canonical_json


def test_digest_is_the_sha256_of_sorted_compact_json() -> None:
    contract = RunContract(name="ct-low-dose", seed=3)
    document = json.loads(canonical_json(contract.model_dump(mode="json")))
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # RFC 8785 writes whole floats without a fraction, which json.dumps does not.
    assert json.loads(text) == document
    assert (
        contract.digest()
        == hashlib.sha256(canonical_json(contract.model_dump(mode="json"))).hexdigest()
    )


def test_digest_survives_a_round_trip_and_changes_with_any_field() -> None:
    contract = RunContract(name="ct-low-dose")
    assert RunContract.model_validate_json(contract.model_dump_json()).digest() == contract.digest()
    others = [
        contract.model_copy(update={"seed": 1}),
        contract.model_copy(update={"images": 9}),
        contract.model_copy(update={"task": contract.task.model_copy(update={"photons": 11.0})}),
    ]
    assert len({contract.digest(), *(other.digest() for other in others)}) == 4


def test_the_phantoms_of_an_mr_contract_are_heads_unless_it_says_otherwise() -> None:
    def anatomy(**fields: object) -> str:
        contract = RunContract.model_validate({"name": "mr", **fields})
        again = RunContract.model_validate_json(contract.model_dump_json())
        assert again.digest() == contract.digest()
        return contract.prior.anatomy

    mr = {"name": "mr-denoise"}
    assert anatomy() == "thorax"
    assert anatomy(task=mr) == "head"
    assert anatomy(task=mr, prior={"textured": False}) == "head"
    assert anatomy(task=mr, prior={"anatomy": "abdomen"}) == "abdomen"


def test_a_contract_is_immutable_and_refuses_unknown_fields() -> None:
    contract = RunContract(name="ct-low-dose")
    with pytest.raises(ValidationError, match="frozen"):
        contract.seed = 2  # type: ignore[misc]
    with pytest.raises(ValidationError, match="extra"):
        RunContract.model_validate({"name": "ct", "sead": 2})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "Upper Case"', "name: "),
        ('name = "ct"\nimages = 0', "images: "),
        ('name = "ct"\n[task]\nsize_px = 64\n[anchor]\ncrop_px = 65', "crop_px"),
        ('name = "ct"\n[anchor]\nrounds = 0\n[probes]\nrequests = 0', "nothing to ask"),
        ('name = "ct"\n[spg]\npersona = "patient"', "set granularity to 'patient'"),
        ('name = "ct"\ngranularity = "federation"\n[spg]\npersona = "cohort"', "granularity"),
        ('name = "ct"\n[task]\nwindow_low_hu = 500\nwindow_high_hu = 400', "window_high_hu"),
        ("name = ", "not valid TOML"),
    ],
)
def test_a_bad_contract_file_names_the_field(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "contract.toml"
    file.write_text(text)
    with pytest.raises(ContractError, match=said):
        read_contract(file)


def test_a_missing_contract_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"none\.toml: cannot be read"):
        read_contract(tmp_path / "none.toml")


@pytest.mark.parametrize("persona", ["federation", "cohort", "patient"])
def test_summaries_by_patient_serve_every_persona(persona: str) -> None:
    table = {"name": "ct", "granularity": "patient", "spg": {"persona": persona}}
    assert RunContract.model_validate(table).spg.persona == persona


def test_bounds_of_a_patient_and_what_a_row_is_reduced_to() -> None:
    contract = RunContract(
        name="ct",
        probes=Probes(clip_norm=0.5),
        anchor=Anchor(clip_norm=3.0),
        privacy=Privacy(sketch=64, directions=24),
    )
    # Four rows of at most 0.5 each are of at most 1 together.
    assert contract.patient_bound("gradients", rows=4) == pytest.approx(1.0)
    assert contract.patient_bound("local-steps", rows=1) == contract.row_bound("local-steps") == 3.0
    assert (contract.reduced_to("gradients"), contract.reduced_to("local-steps")) == (64, 24)
    assert RunContract(name="ct").reduced_to("gradients") == 0


@pytest.mark.parametrize(("name", "key"), [("a", "22" * 32), ("b", "11" * 32)])
def test_a_member_is_named_once_and_no_two_share_a_key(name: str, key: str) -> None:
    members = [{"name": "a", "signing_key": "11" * 32}, {"name": name, "signing_key": key}]
    table = {"name": "ct", "granularity": "federation", "members": members}
    with pytest.raises(ValidationError, match="of their own"):
        RunContract.model_validate(table)
    members[1] = {"name": "b", "signing_key": "22" * 32}
    assert len(RunContract.model_validate(table).members) == 2


def test_the_noise_of_a_contract_is_that_of_its_rounds_and_epsilon() -> None:
    private = Privacy(epsilon=4.0, delta=1e-6, sampling=0.5)
    anchor = Anchor(rounds=4, descent="patient")
    contract = RunContract(name="ct", privacy=private, anchor=anchor, probes=Probes(requests=2))
    z = contract.noise_multiplier
    assert z is not None
    assert 0.999 * 4 < epsilon_of([Spent(z, 0.5, 6)], delta=1e-6) <= 4
    assert RunContract(name="ct").noise_multiplier is None
    with pytest.raises(ValidationError, match=r"privacy\.delta"):
        RunContract.model_validate({"name": "ct", "privacy": {"epsilon": 1, "delta": 1e-10}})


def test_only_a_contract_that_asks_for_real_pairs_has_another_digest() -> None:
    plain = RunContract(name="ct-low-dose")
    said = RunContract.model_validate({"name": "ct-low-dose", "task": {"pairs": "simulated"}})
    real = RunContract.model_validate({"name": "ct-low-dose", "task": {"pairs": "real"}})
    assert "pairs" not in plain.model_dump(mode="json")["task"]
    assert plain.digest() == said.digest() != real.digest()
    assert (plain.real_pairs, real.real_pairs) == (False, True)
    assert RunContract.model_validate_json(real.model_dump_json()).digest() == real.digest()


def test_real_pairs_are_of_one_ct_task() -> None:
    parts = [{"name": "ct-denoise", "pairs": "real"}, {"name": "ct-sr"}]
    for task in ({"name": "multi", "parts": parts}, {"name": "ct-sr", "pairs": "real"}):
        with pytest.raises(ValidationError, match="pairs"):
            RunContract.model_validate({"name": "x", "task": task})


def test_only_a_contract_that_is_judged_at_the_sites_has_another_digest() -> None:
    plain = RunContract(name="x")
    said = RunContract(name="x", evaluation=Evaluation(sites=False))
    judged = RunContract(name="x", evaluation=Evaluation(sites=True))
    assert "evaluation" not in plain.model_dump(mode="json")
    assert plain.digest() == said.digest() != judged.digest()
    assert RunContract.model_validate_json(judged.model_dump_json()).digest() == judged.digest()
    objecting = judged.model_copy(update={"evaluation": Evaluation(sites=True, veto=True)})
    assert objecting.digest() != judged.digest()


@pytest.mark.parametrize(
    ("fields", "fix"),
    [
        ({"evaluation": {"veto": True}}, "evaluation.sites = true"),
        ({"evaluation": {"sites": True}, "granularity": "federation"}, "secure sum hides"),
        (
            {
                "evaluation": {"sites": True},
                "privacy": {"epsilon": 3.0},
                "anchor": {"descent": "patient"},
            },
            "privacy.epsilon does not cover",
        ),
    ],
)
def test_figures_go_with_neither_noise_nor_a_secure_sum(
    fields: dict[str, object], fix: str
) -> None:
    with pytest.raises(ValidationError, match=fix):
        RunContract.model_validate({"name": "x", **fields})
