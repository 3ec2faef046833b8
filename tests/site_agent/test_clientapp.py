import subprocess
import sys
import threading
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from shared.messages import RefusalCode, RefusalHeader, decode
from site_agent import clientapp
from site_agent.environment import SITE_VARIABLE, SOCKET_VARIABLE
from site_agent.frames import recv_frame, send_frame


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(SITE_VARIABLE, "st-anna")
    monkeypatch.setenv(SOCKET_VARIABLE, str(tmp_path / "worker.sock"))
    return tmp_path / "worker.sock"


def request(content: RecordDict) -> Message:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 7, 1
    message = Message(content, 7, "query.summarise")
    message.metadata.__dict__["_message_id"] = "m"
    return message


def ask(payload: object = b"request") -> bytes:
    content = RecordDict({"request": ConfigRecord({"payload": payload})})  # type: ignore[dict-item]
    return ask_with(content)


def ask_with(content: RecordDict) -> bytes:
    reply = clientapp.app(request(content), Context(1, 7, {}, RecordDict(), {}))
    assert not reply.has_error()
    answer = reply.content["answer"]["payload"]
    assert isinstance(answer, bytes)
    return answer


def refusal_code(answer: bytes) -> RefusalCode:
    header = decode(answer).header
    assert isinstance(header, RefusalHeader)
    assert header.site == "st-anna"
    assert header.incident != "0" * 12
    return header.code


def listen(path: Path, reply: bytes | None) -> threading.Thread:
    """A worker for one connection; without a reply it hangs up."""
    import socket

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            assert recv_frame(connection, limit=100) == b"request"
            if reply is not None:
                send_frame(connection, reply)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_the_workers_bytes_pass_unchanged(site: Path) -> None:
    thread = listen(site, b"\x00summary\xff")
    assert ask() == b"\x00summary\xff"
    thread.join()


def test_no_worker_is_a_refusal(site: Path) -> None:
    assert refusal_code(ask()) == RefusalCode.WORKER_UNREACHABLE


def test_a_worker_that_dies_meanwhile_is_a_refusal(site: Path) -> None:
    thread = listen(site, None)
    assert refusal_code(ask()) in (RefusalCode.WORKER_UNREACHABLE, RefusalCode.INTERNAL)
    thread.join()


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"request": ConfigRecord({})}),
        RecordDict({"request": ConfigRecord({"payload": "text"})}),
        RecordDict({"request": ConfigRecord({"payload": 3})}),
    ],
)
def test_a_request_of_another_shape_is_refused(content: RecordDict) -> None:
    assert refusal_code(ask_with(content)) == RefusalCode.MALFORMED


def test_no_text_of_an_error_leaves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def call(*_: object, **__: object) -> bytes:
        raise ValueError("CANARY")

    monkeypatch.setattr(clientapp, "call", call)
    answer = ask()
    assert refusal_code(answer) == RefusalCode.INTERNAL
    assert b"CANARY" not in answer
    header = decode(answer).header
    assert isinstance(header, RefusalHeader)
    assert "CANARY" in caplog.text  # the site's own log has the cause ...
    assert header.incident in caplog.text  # ... under the incident the aggregator can quote


def test_it_imports_neither_torch_nor_pydicom() -> None:
    code = (
        "import sys, site_agent.clientapp, site_agent.superexec\n"
        "print([m for m in ('torch', 'pydicom', 'SimpleITK', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
