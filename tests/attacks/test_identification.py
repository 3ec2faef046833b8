import pytest
import torch

from aggregator.attack_command import Kind, _told
from aggregator.attacks.identification import Effort, FewPeopleError, _rates, measure
from aggregator.attacks.scene import Scene
from aggregator.attacks.summaries import Question, questions
from tests.attacks.conftest import CONTRACT, Watched, stage

Rates = dict[tuple[str, str, str], dict[str, float]]
"""Rank-1 rates by mode, by what is looked at, and by what is known."""

LITTLE = Effort(steps=1, images=1, groups=1, patients=2, linked=30)


@pytest.fixture(scope="module")
def found(calm_scene: Scene, calm_asked: list[Question]) -> Rates:
    watched = Watched()
    result = measure(calm_scene, calm_asked, seed=0, effort=LITTLE, watch=watched)
    assert result["chance"] == 0.05
    assert watched.ended() == {"everybody's parts": 4 * 26, "identification": 4, "linkage": 9}
    return {(row["mode"], row["from"], row["knows"]): row["rank1"] for row in result["rows"]}


def test_rows_name_what_is_seen_and_what_is_known(
    found: Rates,
) -> None:
    modes, knowledge = ("patient", "cohort", "federation"), ("exact", "images", "other-images")
    assert set(found) == {
        *((mode, "reconstruction", "images") for mode in modes),
        *((mode, "summary", knows) for mode in modes for knows in knowledge),
    }


def test_a_clear_gradient_of_a_patient_names_the_patient(
    found: Rates,
) -> None:
    assert found["patient", "summary", "exact"]["mean"] == 1.0
    assert found["patient", "summary", "images"]["mean"] > 0.2


def test_of_a_clear_mean_membership_shows(
    found: Rates,
) -> None:
    assert found["cohort", "summary", "exact"]["interval"][0] > 0.05  # type: ignore[index]


def test_under_noise_there_is_but_chance() -> None:
    anchor = CONTRACT.anchor.model_copy(update={"descent": "patient"})
    privacy = CONTRACT.privacy.model_copy(update={"epsilon": 0.5, "patients": 4})
    scene = stage(CONTRACT.model_copy(update={"anchor": anchor, "privacy": privacy}))
    asked = questions(scene, on_step=lambda *_: None)
    result = measure(scene, asked, seed=0, effort=LITTLE, watch=Watched())
    of_summaries = [row for row in result["rows"] if row["from"] == "summary"]
    assert len(of_summaries) == 9
    assert all(row["rank1"]["interval"][0] <= 0.07 for row in of_summaries)


def test_where_nothing_is_of_one_patient_no_control_is_claimed(
    scene: Scene, asked: list[Question]
) -> None:
    result = measure(scene, asked[:1], seed=0, effort=LITTLE, watch=Watched())
    assert {row["mode"] for row in result["rows"]} == {"cohort", "federation"}
    assert result["control_succeeded"] is None
    assert "no control: nothing is of one patient" in _told(Kind.IDENTIFICATION, result)
    failed = _told(Kind.IDENTIFICATION, result | {"control_succeeded": False})
    assert "THE CONTROL DID NOT SUCCEED" in failed


def test_rates_rank_members_among_those_who_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.zeros(40)
    scores[0], scores[1], scores[2:21] = 2.0, 1.0, 1.5
    rates = _rates(scores, [0, 1], generator)
    assert rates[0] == 1.0
    assert rates[1] < 0.01
    chances = [_rates(torch.randn(40, generator=generator), [0], generator)[0] for _ in range(400)]
    assert sum(chances) / 400 == pytest.approx(0.05, abs=0.03)


def test_too_few_people_are_told(scene: Scene, asked: list[Question]) -> None:
    few = stage(CONTRACT)
    small = type(few)(**{**vars(few), "unseen": few.unseen[:8]})
    with pytest.raises(FewPeopleError, match="20 candidates needs more than 20 patients"):
        measure(small, asked, seed=0, effort=LITTLE, watch=Watched())
