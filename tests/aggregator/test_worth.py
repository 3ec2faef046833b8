import re

import pytest
from pydantic import ValidationError

from aggregator.utility import ROWS
from aggregator.worth import ROW_TITLES, Utility, worth

ROW = {"psnr": {"mean": 31.25, "std": 0.125, "n": 9}, "ssim": {"mean": 0.75, "std": 0.5, "n": 9}}
TABLE = {
    "rows": {name: {**ROW, "patients": [30.5, 32.0], "variant": ""} for name in reversed(ROWS)},
    "best_null": "public_and_textured",
    "gain_over_best_null": 0.34,
    "gain_interval": [0.21, 0.47],
    "worth_of_hospital_data": 0.5,
    "worth_interval": [0.3, 0.7],
    "share_recovered": 0.68,
    "share_recovered_interval": [0.4, None],
    "gap_closed": 0.9,
    "distance_to_full": 0.16,
    "distance_to_full_interval": None,
    "releases": 18,
    "requests": 6,
    "seconds": {"anchor": 12.5},
    "bytes_published": 1_048_576,
    "bytes_raw": 9_437_184,
    "gate": {"passed": True, "reason": "+0.34 dB over public_and_textured"},
}


def test_every_row_of_the_table_is_explained_in_its_order() -> None:
    assert tuple(ROW_TITLES) == ROWS
    text = worth(Utility.model_validate(TABLE))
    assert tuple(re.findall(r"^\| `(\w+)` \|.*± .*± ", text, re.MULTILINE)) == ROWS
    nulls = ROWS[1 : ROWS.index("distilled")]
    assert all("no hospital data" in ROW_TITLES[name] for name in nulls)


def test_figures_come_with_their_intervals() -> None:
    text = worth(Utility.model_validate(TABLE))
    for line in (
        "| `gain_over_best_null` | 0.34 | 0.21 to 0.47 | dB of this release over",
        "| `share_recovered` | 0.68 | 0.40 to unbounded |",
        "| `distance_to_full` | 0.16 |  |",
        "| `releases` | 18 |  |",
        "| `bytes_published` | 1,048,576 |",
        "Gate before publishing: passed. +0.34 dB",
    ):
        assert line in text
    assert "worth no more" not in text
    assert "above_real_same_bytes" not in text  # not measured, not shown


def test_times_and_patients_are_not_part_of_what_is_published() -> None:
    kept = Utility.model_validate(TABLE).model_dump_json()
    assert "seconds" not in kept
    assert "patients" not in kept
    assert "share_recovered_interval" in kept


def test_a_gate_that_did_not_pass_and_a_loss_are_said() -> None:
    lost = {**TABLE, "gain_over_best_null": -0.1, "gate": {"passed": False, "reason": "a | b"}}
    text = worth(Utility.model_validate(lost))
    assert "**not passed**. a \\| b" in text
    assert "worth no more than the best control" in text


def test_without_figures_nothing_is_claimed() -> None:
    assert worth(None) == "Not measured for this release: no utility is claimed."
    bare = worth(Utility.model_validate({"rows": {"input": ROW}}))
    assert "| figure |" not in bare


@pytest.mark.parametrize(
    "wrong",
    [
        {"share_recovered_interval": [0.4]},
        {"gain_over_best_null": float("nan")},
        {"gate": {"passed": True}},
        {"rows": {"input": {"psnr": ROW["psnr"]}}},
    ],
)
def test_a_table_of_another_shape_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Utility.model_validate({**TABLE, **wrong})
