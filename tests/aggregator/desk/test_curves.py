import pytest

from aggregator.desk.comparison import differences, fields_of
from aggregator.desk.curves import MOST_LINES, curves
from aggregator.desk_api import RoundView, RunView
from aggregator.lifecycle import RunState
from aggregator.runs import RunPlan
from shared.contract import RunContract


def view(*history: RoundView) -> RunView:
    return RunView(
        digest="0" * 64,
        name="ct",
        state=RunState(state="running", since=0),
        meaning="",
        contract=RunContract(name="ct"),
        plan=RunPlan(sites=("a",)),
        history=history,
    )


def test_a_round_without_a_value_has_none_and_a_curve_without_values_is_not_drawn() -> None:
    anchor = RoundView(round=1, phase="anchor", ended=1, seconds=9, bytes_up=1024 * 1024)
    probes = RoundView(
        round=2, phase="probes", ended=2, seconds=8, loss=0.5, cosine=(0.9,), personas=("all",)
    )
    drawn = {one.title: one for one in curves(view(anchor, probes))}
    assert set(drawn) == {
        "Matching distance",
        "Agreement with each persona",
        "Time of a round",
        "Bytes of a round",
    }
    assert drawn["Matching distance"].lines[0].values == (None, 0.5)
    assert drawn["Matching distance"].absent
    (up,) = drawn["Bytes of a round"].lines
    assert (up.label, up.values) == ("from sites", (1.0, None))
    assert curves(view()) == ()


def test_personas_keep_their_line_when_one_is_missing_in_a_round() -> None:
    first = RoundView(round=1, phase="probes", ended=1, cosine=(0.1, 0.2), personas=("a", "b"))
    second = RoundView(round=2, phase="probes", ended=2, cosine=(0.3,), personas=("b",))
    (drawn,) = curves(view(first, second))
    assert {one.label: one.values for one in drawn.lines} == {"a": (0.1, None), "b": (0.2, 0.3)}


def test_of_many_personas_extremes_and_median_are_drawn() -> None:
    values = tuple(k / 100 for k in range(MOST_LINES + 1))
    one = RoundView(round=1, phase="probes", ended=1, cosine=values, personas=None)
    (drawn,) = curves(view(one))
    assert [(line.label, line.values) for line in drawn.lines] == [
        ("highest of 9", (0.08,)),
        ("median of 9", (0.04,)),
        ("lowest of 9", (0.0,)),
    ]


def test_two_runs_share_the_rounds_of_both() -> None:
    first = view(RoundView(round=1, phase="anchor", ended=1, seconds=1))
    second = view(RoundView(round=2, phase="anchor", ended=1, seconds=2))
    (drawn,) = curves(first, second, names=("A", "B"))
    assert drawn.rounds == (1, 2)
    assert [(one.label, one.values, one.dashed) for one in drawn.lines] == [
        ("A: seconds", (1, None), False),
        ("B: seconds", (None, 2), True),
    ]


def test_contracts_differ_in_fields_by_their_dotted_names() -> None:
    first = RunContract(name="ct")
    second = RunContract.model_validate(
        {"name": "ct", "images": 9, "task": {"name": "mr-sr"}, "prior": {"anatomy": "head"}}
    )
    found = {one.field: (one.a, one.b) for one in differences(first, second)}
    assert found["images"] == (8, 9)
    assert found["task.name"] == ("ct-denoise", "mr-sr")
    assert found["task.photons"] == (10.0, None)
    assert found["task.factor"] == (None, 4)
    assert "seed" not in found
    assert differences(first, first) == ()
    assert fields_of(first)["probes.depths"] == [30, 120, 400]


@pytest.mark.parametrize("count", [0, 1])
def test_a_run_without_rounds_beside_one_with_some(count: int) -> None:
    one = RoundView(round=1, phase="anchor", ended=1, seconds=1)
    assert len(curves(view(), view(*[one] * count), names=("A", "B"))) == count
