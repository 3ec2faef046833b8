import io
import json
import logging

import pytest

from shared.log_lines import LogFormat
from shared.messages import RefusalCode
from site_agent import events
from site_agent.events import FIELDS, Event, Tally, begin, hashed, log_salt, note
from site_agent.incidents import RefusedError, incident_of


@pytest.fixture
def lines(monkeypatch):
    """What is written as JSON from here on, and undone afterwards."""
    monkeypatch.setattr(events, "_write", None)
    stream = io.StringIO()

    def begun(part="worker", form=LogFormat.JSON):
        begin(part, form, stream=stream)
        return lambda: stream.getvalue().splitlines()

    return begun


def test_an_event_is_one_line_of_json_with_its_fields(lines):
    written = lines()
    note(Event.ANSWERED, contract="ab12", round=3, kind="gradients", bytes=10, seconds=0.5)
    (line,) = map(json.loads, written())
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "request answered",
        "part": "worker",
        "contract": "ab12",
        "round": 3,
        "kind": "gradients",
        "bytes": 10,
        "seconds": 0.5,
    }


def test_every_event_has_its_fields_and_no_other():
    assert set(FIELDS) == set(Event)
    with pytest.raises(ValueError, match="path"):
        note(Event.WORKER_STOPPED, path="x")


@pytest.mark.parametrize("value", ["/srv/ct/DOE^JOHN", "DOE^JOHN", "x" * 300, "a\nb"])
def test_a_path_or_a_strangers_text_is_withheld(lines, value):
    written = lines()
    note(Event.NOT_CONNECTED, reason=value, hint="a hint; with `words` (and more)")
    (line,) = map(json.loads, written())
    assert line["reason"] == "withheld"
    assert line["hint"].startswith("a hint")


def test_what_failed_has_a_code_and_an_id_and_no_text(lines):
    written = lines()
    for error in (RefusedError(RefusalCode.POLICY, "CANARY"), ValueError("CANARY")):
        incident = incident_of(RefusalCode.POLICY, error)
        assert json.loads(written()[-1])["incident"] == incident
    assert "CANARY" not in "".join(written())
    # Positive control: the same stream would show it.
    note(Event.NOT_CONNECTED, reason="CANARY", hint="")
    assert "CANARY" in "".join(written())


def test_json_is_for_what_is_no_terminal(monkeypatch):
    monkeypatch.setattr(events, "_write", None)

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert begin("worker", LogFormat.AUTO, stream=io.StringIO()) is LogFormat.JSON
    screen = Terminal()
    assert begin("worker", LogFormat.AUTO, stream=screen) is LogFormat.TEXT
    note(Event.WORKER_READY, site="a", patients=6, device="cpu")
    assert "worker ready" in screen.getvalue() and "\x1b" not in screen.getvalue()


def test_a_log_that_cannot_be_written_stops_nothing(lines, monkeypatch):
    stream = io.StringIO()
    begin("worker", LogFormat.JSON, stream=stream)
    stream.close()
    note(Event.WORKER_STOPPED)
    monkeypatch.setattr(events, "_write", None)
    note(Event.WORKER_STOPPED)


def test_events_of_others_loggers_do_not_come_in(lines):
    written = lines()
    logging.getLogger("pydicom").error("CANARY")
    logging.getLogger("fedstill.site").error("CANARY")
    assert written() == []


def test_hashes_need_the_salt_which_is_this_users_alone(tmp_path):
    salt = log_salt(tmp_path)
    assert log_salt(tmp_path) == salt and len(salt) == 32
    assert (tmp_path / "keys" / "log.salt").stat().st_mode & 0o777 == 0o600
    assert hashed("10.1.2.3", salt=salt) == hashed("10.1.2.3", salt=salt)
    assert hashed("10.1.2.3", salt=salt) != hashed("10.1.2.3", salt=bytes(32))
    (tmp_path / "keys" / "log.salt").write_bytes(b"short")
    assert len(log_salt(tmp_path)) == 32


def test_the_tally_is_of_what_was_said():
    tally = Tally()
    tally.count(Event.ANSWERED, {"bytes": 10, "seconds": 0.5})
    tally.count(Event.ANSWERED, {"bytes": 5, "seconds": 0.25})
    tally.count(Event.REFUSED, {"code": "policy"})
    assert tally.read() == {
        "events": {"request answered": 2, "request refused": 1},
        "refusals": {"policy": 1},
        "answer_bytes": 15,
        "answer_seconds": 0.75,
    }
