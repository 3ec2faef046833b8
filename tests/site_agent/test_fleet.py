import signal
from collections.abc import Callable
from typing import Any

import flwr.supercore.heartbeat as heartbeat
import flwr.supernode.fleet_http_connection as connection
import httpx
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.run import RunNotRunningException

from site_agent import fleet
from site_agent.fleet import Losses, PatientClient, bear_faults, beating


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Signals that the process has sent itself."""
    sent: list[int] = []
    monkeypatch.setattr(fleet.os, "kill", lambda _, number: sent.append(number))
    return sent


def client(*answers: httpx.Response | Exception) -> PatientClient:
    """A client that is given these answers, one after the other."""
    left = list(answers)

    def handle(_: httpx.Request) -> httpx.Response:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    built = PatientClient("http://aggregator")
    built._client = httpx.Client(transport=httpx.MockTransport(handle))
    return built


def pull(one: PatientClient) -> Any:
    return one.PullMessages(PullMessagesRequest())


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ReadTimeout("lost"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("gone"),
        httpx.Response(502),
        httpx.Response(504),
    ],
)
def test_a_node_whose_question_may_be_lost_starts_afresh_once_it_is_heard(
    killed: list[int], failure: httpx.Response | Exception
) -> None:
    one = client(failure, httpx.Response(200))
    with pytest.raises(httpx.HTTPError):
        pull(one)
    assert not killed, "not before the aggregator can be told"
    with pytest.raises(SystemExit):
        pull(one)
    assert killed == [signal.SIGTERM]


@pytest.mark.parametrize(
    "failure", [httpx.ConnectError("refused"), httpx.ConnectTimeout("silence"), httpx.Response(503)]
)
def test_a_question_that_never_arrived_is_asked_again_and_no_more(
    killed: list[int], failure: httpx.Response | Exception
) -> None:
    one = client(failure, httpx.Response(200))
    with pytest.raises(httpx.HTTPError):
        pull(one)
    assert not pull(one).messages_list
    assert not killed


def test_a_handshake_that_timed_out_is_tried_again(killed: list[int]) -> None:
    """The control: in Flower's own words it is not."""
    text = "_ssl.c:989: The handshake operation timed out"
    one = client(httpx.ConnectTimeout(text), httpx.Response(200))
    invoker = make_simple_http_retry_invoker()
    invoker.wait_function = lambda _: None
    assert not invoker.invoke(pull, one).messages_list
    with pytest.raises(httpx.ConnectTimeout):
        invoker.invoke(_raising(httpx.ConnectTimeout(text)))
    assert not killed


def _raising(error: Exception) -> Callable[..., Any]:
    def step(*_: object) -> None:
        raise error

    return step


def test_a_step_that_failed_has_the_node_start_afresh_but_not_at_the_end_of_a_run(
    killed: list[int],
) -> None:
    losses = Losses()
    assert losses.noticing(lambda one: one)(3) == 3
    for error in (RunNotRunningException(), ConnectionAbortedError()):
        with pytest.raises(type(error)):
            losses.noticing(_raising(error))()
    losses.settle()
    assert not killed
    with pytest.raises(httpx.ReadError):
        losses.noticing(_raising(httpx.ReadError("x")))("m")
    with pytest.raises(SystemExit):
        losses.settle()
    assert killed == [signal.SIGTERM]


def test_a_heart_that_stops_ends_the_node(killed: list[int]) -> None:
    assert beating(lambda: True)()
    assert not beating(lambda: False)(), "not heard: it is tried again"
    assert not killed
    with pytest.raises(RuntimeError):
        beating(_raising(RuntimeError("unknown node")))()
    assert killed == [signal.SIGTERM]


def test_the_node_is_given_both(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (connection, "FleetHttpClient"),
        (connection, "HEARTBEAT_DEFAULT_INTERVAL"),
        (heartbeat, "HEARTBEAT_DEFAULT_INTERVAL"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    bear_faults()
    assert connection.FleetHttpClient is PatientClient
    assert connection.HEARTBEAT_DEFAULT_INTERVAL == fleet.HEARTBEAT_S
    assert heartbeat.HEARTBEAT_DEFAULT_INTERVAL - heartbeat.HEARTBEAT_CALL_TIMEOUT > 5
