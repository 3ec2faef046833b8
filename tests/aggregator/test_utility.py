import math
from typing import Any

import numpy as np
import pytest

from aggregator.utility import (
    ROWS,
    anchor_gain,
    best_null,
    figures,
    gate,
    percentile_interval,
    resampled_means,
    row,
    table_text,
)


def of_means(**psnr: float) -> dict[str, dict[str, Any]]:
    """Rows of three patients, one run."""
    return {
        name: row([[mean - 1, mean, mean + 1]], [[mean / 50] * 3]) for name, mean in psnr.items()
    }


PLAIN = of_means(input=28.0, prior=30.0, prior_textured=32.0, distilled=33.0, full=34.0)


def test_a_row_is_of_patient_means_over_runs() -> None:
    psnr = np.array([[30.0, 34.0], [31.0, 35.0], [33.0, 33.0]])
    made = row(psnr, psnr / 40, variant="8 phantoms")
    means = [32.0, 33.0, 33.0]
    assert made["psnr"]["mean"] == pytest.approx(sum(means) / 3)
    assert made["psnr"]["std"] == pytest.approx(math.sqrt((4 / 9 + 1 / 9 + 1 / 9) / 2))
    assert made["psnr"]["n"] == made["ssim"]["n"] == 3
    assert made["ssim"]["mean"] == pytest.approx(sum(means) / 3 / 40)
    assert made["patients"] == pytest.approx([94 / 3, 102 / 3])
    assert made["variant"] == "8 phantoms"


def test_one_run_has_no_spread() -> None:
    assert row([[30.0, 32.0]], [[0.8, 0.9]])["psnr"] == {"mean": 31.0, "std": 0.0, "n": 1}


def test_figures_follow_from_the_rows() -> None:
    made = figures({**PLAIN, **of_means(real_same_bytes=32.5)})
    assert made["best_null"] == "prior_textured"
    assert made["gain_over_best_null"] == pytest.approx(1.0)
    assert made["worth_of_hospital_data"] == pytest.approx(2.0)
    assert made["share_recovered"] == pytest.approx(0.5)
    assert made["gap_closed"] == pytest.approx(0.75)
    assert made["distance_to_full"] == pytest.approx(1.0)
    assert made["above_real_same_bytes"] == pytest.approx(0.5)


def test_the_anchors_gain_is_over_the_network_it_began_as() -> None:
    rows = of_means(anchor=35.0, beginning=34.6)
    made = anchor_gain(rows["anchor"], rows["beginning"])
    assert made["anchor_gain"] == pytest.approx(0.4)
    assert made["anchor_gain_interval"] == pytest.approx([0.4, 0.4])
    assert "anchor_gain              +0.40 dB  [+0.40, +0.40]" in table_text(
        {"rows": {}, "best_null": None, **made}
    )
    assert anchor_gain(None, rows["beginning"])["anchor_gain"] is None
    assert anchor_gain(rows["anchor"], None) == {"anchor_gain": None, "anchor_gain_interval": None}


def test_rows_of_hospital_data_are_never_the_null() -> None:
    for name in ("distilled", "anchor", "real_same_bytes", "full"):
        assert best_null({**PLAIN, **of_means(**{name: 50.0})}) == "prior_textured"
    for name in set(ROWS) - {"distilled", "anchor", "real_same_bytes", "full"}:
        assert best_null({**PLAIN, **of_means(**{name: 50.0})}) == name


def test_where_hospital_data_is_worth_nothing_no_share_is_claimed() -> None:
    made = figures({**PLAIN, **of_means(prior=34.5, prior_textured=35.0)})
    assert made["share_recovered"] is made["share_recovered_interval"] is None
    assert made["gap_closed"] is None
    assert made["worth_of_hospital_data"] == pytest.approx(-1.0)


def test_a_figure_of_an_absent_row_is_none() -> None:
    made = figures({name: one for name, one in PLAIN.items() if name != "full"})
    for name in ("worth_of_hospital_data", "share_recovered", "gap_closed", "distance_to_full"):
        assert made[name] is None
    assert made["above_real_same_bytes"] is None
    assert made["gain_over_best_null"] == pytest.approx(1.0)


def test_the_intervals_agree_with_a_plain_loop_over_resamples() -> None:
    random = np.random.default_rng(3)
    patients = 12
    values = {
        "prior": random.normal(31.0, 1.0, patients),
        "distilled": random.normal(33.0, 1.0, patients),
        "full": random.normal(34.0, 1.0, patients),
    }
    made = figures({name: row([of_row], [of_row / 50]) for name, of_row in values.items()})
    gains, shares = [], []
    again = np.random.default_rng(77)
    for _ in range(4000):
        chosen = again.integers(patients, size=patients)
        prior, distilled, full = (
            float(np.mean(values[name][chosen])) for name in ("prior", "distilled", "full")
        )
        gains.append(distilled - prior)
        shares.append((distilled - prior) / (full - prior))
    assert made["gain_interval"] == pytest.approx(np.percentile(gains, [2.5, 97.5]), abs=0.06)
    assert made["share_recovered_interval"] == pytest.approx(
        np.percentile(shares, [2.5, 97.5]), abs=0.06
    )


def test_pairing_by_patient_removes_what_patients_have_in_common() -> None:
    patients = np.linspace(20.0, 40.0, 15)
    rows = {
        "prior": row([patients], [patients / 50]),
        "distilled": row([patients + 0.3], [patients / 50]),
        "full": row([patients + 0.5], [patients / 50]),
    }
    made = figures(rows)
    assert made["gain_interval"] == pytest.approx([0.3, 0.3])
    assert made["share_recovered_interval"] == pytest.approx([0.6, 0.6])


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    trials, patients, truth = 300, 40, 0.4
    covered = 0
    for _ in range(trials):
        means = resampled_means({"gain": list(random.normal(truth, 1.0, patients))})
        low, high = percentile_interval(means["gain"])
        assert low is not None and high is not None
        covered += low <= truth <= high
    # 95% nominal; the percentile bootstrap of 40 is a little narrow. Binomial sd is 1.3%.
    assert 0.90 <= covered / trials <= 0.985


def test_resamples_have_the_mean_and_spread_of_theory() -> None:
    values = [30.0, 31.0, 35.0, 36.0, 28.0]
    means = resampled_means({"one": values, "same": values})
    assert means["one"].shape == (10_000,)
    assert np.array_equal(means["one"], means["same"])
    assert means["one"].mean() == pytest.approx(np.mean(values), abs=0.06)
    assert means["one"].std() == pytest.approx(np.std(values) / math.sqrt(5), rel=0.03)


def test_rows_of_different_patients_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="same patients"):
        resampled_means({"one": [1.0, 2.0], "other": [1.0]})


def test_a_share_is_unbounded_where_resamples_leave_full_data_worth_nothing() -> None:
    rows = {
        "prior": row([[30.0, 30.0, 30.0]], [[0.5] * 3]),
        "distilled": row([[30.1, 30.2, 30.3]], [[0.5] * 3]),
        "full": row([[29.0, 30.1, 31.4]], [[0.5] * 3]),
    }
    low, high = figures(rows)["share_recovered_interval"]
    assert low is not None and low > 0
    assert high is None


def test_a_set_above_prior_and_best_null_passes() -> None:
    decided = gate({"rows": PLAIN})
    assert decided.passed
    assert "+1.00 dB over prior_textured" in decided.reason
    assert decided.figures["gain_over_prior"] == pytest.approx(3.0)
    assert decided.figures["best_null"] == "prior_textured"


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ({"prior_textured": 33.01}, "prior_textured without any hospital's data to 33.01 dB"),
        ({"prior": 33.5}, "prior without any hospital's data to 33.50 dB"),
        ({"public_anchored": 40.0}, "public_anchored without"),
        ({"noise_targets": 33.2}, "noise_targets without"),
        ({"input": 33.1}, "input without"),
        ({"distilled": math.nan}, "not finite"),
    ],
)
def test_a_set_below_prior_or_any_null_is_refused(rows: dict[str, float], reason: str) -> None:
    decided = gate({"rows": {**PLAIN, **of_means(**rows)}, "best_null": "prior"})
    assert not decided.passed
    assert reason in decided.reason


def test_equal_to_the_best_null_is_not_worse() -> None:
    assert gate({"rows": {**PLAIN, **of_means(distilled=32.0)}}).passed


def test_a_gain_that_the_patients_do_not_show_passes_and_says_so() -> None:
    rows = {
        "prior": row([[30.0, 31.0, 32.0]], [[0.5] * 3]),
        "distilled": row([[30.9, 30.2, 32.1]], [[0.5] * 3]),
    }
    decided = gate({"rows": rows})
    assert decided.passed
    assert "the patients do not tell it from none" in decided.reason


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"rows": {}},
        {"rows": None},
        {"rows": {"prior": 3}},
        {"rows": {"prior": PLAIN["prior"]}},
        {"rows": {**PLAIN, "distilled": {**PLAIN["distilled"], "patients": [33.0]}}},
    ],
)
def test_a_table_that_cannot_be_judged_does_not_pass(table: dict[str, Any]) -> None:
    decided = gate(table)
    assert not decided.passed
    assert decided.reason


def test_a_table_without_patients_is_judged_by_its_means() -> None:
    rows = {name: {"psnr": one["psnr"], "ssim": one["ssim"]} for name, one in PLAIN.items()}
    decided = gate({"rows": rows})
    assert decided.passed
    assert decided.figures["gain_interval"] is None


def test_the_table_for_people_has_every_row_and_figure() -> None:
    text = table_text({"rows": PLAIN, **figures(PLAIN), "bytes_raw": 1234567})
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == list(PLAIN)
    assert "33.00 ± 0.00" in text
    assert any(line.startswith("share_recovered") and "50%" in line for line in lines)
    assert any(line.startswith("above_real_same_bytes") and "–" in line for line in lines)
    assert "1,234,567" in text
