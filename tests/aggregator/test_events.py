import io
import json
import subprocess
import sys
from typing import Any

import pytest

from aggregator import events
from aggregator.events import FIELDS, Event, begin, note, said
from shared.log_lines import LogFormat


@pytest.fixture(autouse=True)
def _quiet_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_write", None)


def test_an_event_is_one_line_of_json_and_is_counted() -> None:
    stream, before = io.StringIO(), said().get("service ended", 0)
    assert begin(LogFormat.AUTO, stream=stream) is LogFormat.JSON
    note(Event.SERVICE_ENDED, service="api", code=137, again_s=2.0)
    line: dict[str, Any] = json.loads(stream.getvalue())
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "service ended",
        "part": "aggregator",
        "service": "api",
        "code": 137,
        "again_s": 2.0,
    }
    assert said()["service ended"] == before + 1


def test_every_event_has_its_fields_and_no_other() -> None:
    assert set(FIELDS) == set(Event)
    with pytest.raises(ValueError, match="path"):
        note(Event.STOPPED, path="x")
    stream = io.StringIO()
    begin(LogFormat.JSON, stream=stream)
    note(Event.SERVICE_FAILED, service="api", again_s=1.0, hint="/srv/home/logs")
    assert json.loads(stream.getvalue())["hint"] == "withheld"


LIBRARIES = """
import logging.config
from aggregator.api.log import log_config
from shared.log_lines import LogFormat

logging.config.dictConfig(log_config(LogFormat.JSON))
logging.getLogger("uvicorn.error").info("Uvicorn running on %s", "http://127.0.0.1:1")
try:
    raise RuntimeError("why")
except RuntimeError:
    logging.getLogger("sqlalchemy.pool").exception("it broke")
logging.getLogger("sqlalchemy.pool").info("not said")
"""


def test_libraries_of_the_api_write_lines_of_the_same_form() -> None:
    # In a process of its own: what configures logging closes the handlers that were there.
    done = subprocess.run(
        [sys.executable, "-c", LIBRARIES], capture_output=True, text=True, check=True
    )
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["event"] == "Uvicorn running on http://127.0.0.1:1"
    assert (first["part"], first["level"]) == ("api", "info")
    assert "RuntimeError: why" in second["exception"]
