import json
from pathlib import Path

from aggregator.progress import Journal


def test_an_event_says_phase_round_and_time_left(tmp_path: Path) -> None:
    now = [0.0]
    journal = Journal(tmp_path / "events.jsonl", rounds=3, clock=lambda: now[0])
    journal.begin_round(1, kind="anchor", remaining={"anchor": 2})
    journal.step("anchor", 0, 3, "asked 3 sites")
    now[0] = 10.0
    assert journal.end_round() == 10.0
    journal.begin_round(2, kind="anchor", remaining={"anchor": 1})
    now[0] = 14.0
    journal.step("anchor", 1, 3, "one answered")
    first, second = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert (first["phase"], first["round"], first["rounds"], first["eta_s"]) == (
        "anchor",
        1,
        3,
        None,
    )
    assert second["eta_s"] == 16.0  # six seconds of this round, ten of the next
    assert set(second) == {
        "time",
        "phase",
        "round",
        "rounds",
        "done",
        "total",
        "eta_s",
        "message",
    }


def test_fast_steps_are_thinned_but_the_last_is_written(tmp_path: Path) -> None:
    now = [0.0]
    journal = Journal(tmp_path / "events.jsonl", rounds=1, clock=lambda: now[0])
    for step in range(1, 1001):
        now[0] += 0.001
        journal.step("distil", step, 1000)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert 3 <= len(events) <= 6
    assert events[-1]["done"] == 1000


def test_a_line_that_a_crash_cut_off_spoils_no_other(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text('{"phase": "anc')
    Journal(file, rounds=1).step("done", 1, 1)
    lines = file.read_text().splitlines()
    assert lines[0] == '{"phase": "anc'
    assert json.loads(lines[1])["phase"] == "done"
