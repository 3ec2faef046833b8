import pytest

from aggregator.launch import Display, describe, describe_eta


def test_an_event_says_phase_round_and_message() -> None:
    event = {"phase": "probes", "round": 2, "rounds": 6, "message": "3 summaries banked"}
    assert describe(event) == "probes round 2/6: 3 summaries banked"
    assert describe({"phase": "public", "rounds": 0}) == "public"


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (0, "about 0:00 left"), (125.4, "about 2:05 left")]
)
def test_eta(seconds: float | None, text: str) -> None:
    assert describe_eta(seconds) == text


def event(done: int, round: int = 1) -> dict[str, object]:
    return {"phase": "distil", "round": round, "rounds": 2, "done": done, "total": 9, "eta_s": 4}


def test_without_a_terminal_a_line_is_written_when_something_changed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    display = Display(quiet=False)
    with display:
        display.say("waiting for site-a")
        display.say("waiting for site-a")
        for done in range(9):
            display.show(event(done))
        display.show(event(0, round=2))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "waiting for site-a",
        "distil round 1/2 0/9 about 0:04 left",
        "distil round 2/2 0/9 about 0:04 left",
    ]


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(quiet=True)
    with display:
        display.say("submitted")
        display.show(event(1))
    assert capsys.readouterr() == ("", "")
