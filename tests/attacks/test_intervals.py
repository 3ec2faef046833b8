import numpy as np
import pytest

from aggregator.attacks.intervals import Guesses, by_patients, likelihood_ratios, mean_of


def truth(trials: int, patients: int, inside: int, *, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    members = np.zeros((trials, patients), dtype=bool)
    for row in members:
        row[random.permutation(patients)[:inside]] = True
    return members


def test_a_mean_has_an_interval_over_patients() -> None:
    found = mean_of([0.0, 1.0, 2.0, 3.0])
    assert found["mean"] == 1.5
    assert found["patients"] == 4
    assert found["interval"][0] < 1.0 < 2.0 < found["interval"][1]
    assert mean_of([2.0, 2.0])["interval"] == [2.0, 2.0]


def test_people_are_resampled_not_their_trials() -> None:
    values = np.array([0.0, 1.0])
    found = by_patients(lambda weights: float(weights @ values / weights.sum()), patients=2)
    assert found == {"mean": 0.5, "interval": [0.0, 1.0], "patients": 2}


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    random = np.random.default_rng(0)
    members = truth(7, 5, 2)
    scores = np.round(random.standard_normal((7, 5)) + members, 1)  # with ties
    inside, outside = scores[members], scores[~members]
    pairs = (inside[:, None] > outside) + 0.5 * (inside[:, None] == outside)
    assert Guesses(scores, members).auc(np.ones(5)) == pytest.approx(pairs.mean())


def test_resampled_people_count_as_often_as_they_are_drawn() -> None:
    random = np.random.default_rng(0)
    members = truth(9, 4, 2)
    scores = random.standard_normal((9, 4))
    twice = [0, 1, 1, 3]
    drawn = Guesses(scores[:, twice], members[:, twice])
    weighed = Guesses(scores, members)
    weights = np.array([1.0, 2.0, 0.0, 1.0])
    assert weighed.auc(weights) == pytest.approx(drawn.auc(np.ones(4)))
    assert weighed.found(weights) == pytest.approx(drawn.found(np.ones(4)))


def test_members_found_at_one_false_positive_in_ten() -> None:
    members = np.array([[True] * 4 + [False] * 20])
    scores = np.concatenate([[5.0, 4.0, 2.5, 0.0], np.linspace(-1, 1, 18), [3.0, 6.0]])[None]
    # Two of twenty may be above: 6 and 3 are, so members above 1 are found, the last is not.
    assert Guesses(scores, members).found(np.ones(24)) == 0.75
    assert Guesses(np.zeros((1, 24)), members).found(np.ones(24)) == 0.0


def test_ratios_tell_members_by_a_mean_of_their_own() -> None:
    random = np.random.default_rng(0)
    members = truth(40, 10, 5)
    level = 100 * random.standard_normal(10)  # says nothing by itself
    statistics = level + 2 * members + random.standard_normal((40, 10))
    figures = Guesses(likelihood_ratios(statistics, members), members).figures()
    # Two normal distributions two deviations apart: F(sqrt 2) = 0.92.
    assert figures["auc"]["mean"] == pytest.approx(0.92, abs=0.03)
    assert figures["tpr_at_fpr_10"]["mean"] > 0.6
    low, high = figures["auc"]["interval"]
    assert low < figures["auc"]["mean"] < high


@pytest.mark.parametrize(("trials", "inside"), [(6, 21), (16, 10), (60, 21)])
def test_of_noise_nothing_is_learned(trials: int, inside: int) -> None:
    random = np.random.default_rng(0)
    areas = []
    for repetition in range(30):
        members = truth(trials, 43, inside, seed=repetition)
        ratios = likelihood_ratios(random.standard_normal((trials, 43)), members)
        areas.append(Guesses(ratios, members).auc(np.ones(43)))
    error = np.std(areas, ddof=1) / 30**0.5
    assert abs(np.mean(areas) - 0.5) < 3 * error


def test_who_is_always_there_cannot_be_told() -> None:
    members = np.array([[True, True], [True, False], [True, True]])
    ratios = likelihood_ratios(np.arange(6.0).reshape(3, 2), members)
    assert (ratios[:, 0] == 0).all()
