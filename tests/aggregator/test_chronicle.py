import json
import time
from pathlib import Path

from aggregator import chronicle
from aggregator.chronicle import chronicle_of, lines_after


def line(**event: object) -> str:
    return json.dumps(event) + "\n"


def ended(round: int, *, time: float, loss: float) -> str:
    return line(time=time, round=round, phase="distil", ended={"asked": "probes", "loss": loss})


def test_what_is_new_is_read_on_and_nothing_twice(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    assert chronicle_of(tmp_path).bytes == 0
    file.write_text(line(time=1, phase="anchor", round=1) + '{"time": 2, "pha')
    first = chronicle_of(tmp_path)
    assert (first.last["phase"], first.first) == ("anchor", 1)
    half = '{"time": 2, "pha'
    assert first.bytes == len(file.read_bytes()) - len(half)
    with file.open("a") as more:
        more.write("\n" + ended(1, time=3, loss=0.5) + ended(1, time=4, loss=0.25))
    second = chronicle_of(tmp_path)
    assert second.bytes == len(file.read_bytes())
    assert {number: one["ended"]["loss"] for number, one in second.rounds.items()} == {1: 0.25}
    assert (second.last["time"], second.first) == (4, 1)
    assert first.rounds == {}, "what was given before stays as it was"


def test_a_journal_that_was_moved_away_begins_anew(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text(ended(1, time=1, loss=1) + ended(2, time=2, loss=1))
    assert sorted(chronicle_of(tmp_path).rounds) == [1, 2]
    file.rename(tmp_path / "old")
    assert chronicle_of(tmp_path).rounds == {}
    file.write_text(ended(3, time=1, loss=1))
    assert sorted(chronicle_of(tmp_path).rounds) == [3]


def test_a_state_is_since_it_began_through_rounds(tmp_path: Path) -> None:
    def offline(time: float, waited_s: float, state: str = "offline") -> str:
        return line(time=time, sites={"a": {"state": state, "waited_s": waited_s}})

    file = tmp_path / "events.jsonl"
    file.write_text(offline(10, 3) + offline(15, 8))
    assert chronicle_of(tmp_path).sites["a"]["since"] == 7
    with file.open("a") as more:
        more.write(offline(30, 1) + offline(40, 2, state="computing"))
    found = chronicle_of(tmp_path).sites["a"]
    assert (found["state"], found["since"], found["told"]) == ("computing", 38, 40)


def test_lines_go_on_from_where_a_reader_was(tmp_path: Path) -> None:
    assert lines_after(tmp_path, 0) == []
    file = tmp_path / "events.jsonl"
    file.write_text(line(time=1) + "half a li\n" + line(time=3) + '{"time"')
    (one, first), (two, second) = lines_after(tmp_path, 0)
    assert (json.loads(first), json.loads(second)) == ({"time": 1}, {"time": 3})
    assert lines_after(tmp_path, one) == [(two, second)]
    assert lines_after(tmp_path, two) == []
    # A place inside of a line, or past the end of another journal: from the beginning.
    assert (
        lines_after(tmp_path, one - 2)
        == lines_after(tmp_path, 10_000)
        == [
            (one, first),
            (two, second),
        ]
    )


def test_a_long_journal_is_taken_in_fast_and_again_at_once(tmp_path: Path) -> None:
    step = line(time=1, phase="distil", round=2, rounds=6, done=5, total=100, message="")
    with (tmp_path / "events.jsonl").open("w") as file:
        for number in range(100):
            file.write(step * 1000 + ended(number, time=number, loss=1.0))
    begun = time.perf_counter()
    assert len(chronicle_of(tmp_path).rounds) == 100
    whole_s = time.perf_counter() - begun
    begun = time.perf_counter()
    for _ in range(100):
        chronicle_of(tmp_path)
    again_s = (time.perf_counter() - begun) / 100
    assert whole_s < 3, "100,000 lines"
    assert again_s < 0.01
    assert again_s < whole_s / 10


def test_chronicles_of_few_runs_alone_are_kept(tmp_path: Path) -> None:
    for number in range(chronicle.MOST_KEPT + 5):
        chronicle_of(tmp_path / str(number))
    assert len(chronicle._readers) == chronicle.MOST_KEPT
