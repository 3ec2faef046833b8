import pytest

from aggregator.enrolment import EnrolmentError
from aggregator.launch import Display, describe, describe_eta, with_members
from aggregator.runs import RunError
from shared.contract import RunContract
from shared.enrolment import Enrolment


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


def enrolled(*names: str) -> list[Enrolment]:
    return [
        Enrolment(name=name, flower_public_key="key", signing_public_key=f"{number}" * 64)
        for number, name in enumerate(names, start=1)
    ]


FEDERATION = RunContract(name="x", granularity="federation")


def test_a_secure_sum_has_the_sites_as_members_and_so_another_digest_with_others() -> None:
    filled = with_members(FEDERATION, enrolled("c", "b", "a"))
    assert [member.name for member in filled.members] == ["a", "b", "c"]
    assert with_members(filled, enrolled("c", "b", "a")) == filled, "what is filled in fits"
    assert filled.foundation() == FEDERATION.digest() != filled.digest()
    assert with_members(FEDERATION, enrolled("c", "b", "d")).digest() != filled.digest()
    with pytest.raises(RunError, match="names other members"):
        with_members(filled, enrolled("c", "b", "d"))
    clear = RunContract(name="x")
    assert with_members(clear, enrolled("a")) is clear


def test_a_secure_sum_of_two_or_without_a_key_is_not_launched() -> None:
    with pytest.raises(RunError, match="needs 3 sites, these are: a, b"):
        with_members(FEDERATION, enrolled("a", "b"))
    sites = [*enrolled("a", "b"), Enrolment(name="old", flower_public_key="key")]
    with pytest.raises(EnrolmentError, match="none is known of old"):
        with_members(FEDERATION, sites)
