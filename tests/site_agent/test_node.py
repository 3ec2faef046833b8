import os
import time

import flwr.supernode.start_client_internal as loop
import pytest

from site_agent import node
from site_agent.node import EMPTY_INBOX_S, Pulse
from site_agent.superexec import replace_sleep


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [1000.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return slept


def test_the_pulse_is_high_after_a_message_and_low_after_a_while(slept: list[float]) -> None:
    read, write = os.pipe()
    pulse = Pulse(write)
    pulse.sleep(EMPTY_INBOX_S)
    assert slept == [node.IDLE_POLL_S]
    pulse.message_arrived()
    assert os.read(read, 10) == b"."
    slept.clear()
    while sum(slept) < node.ACTIVE_FOR_S:
        pulse.sleep(EMPTY_INBOX_S)
    assert set(slept) == {node.ACTIVE_POLL_S}
    pulse.sleep(EMPTY_INBOX_S)
    assert slept[-1] == node.IDLE_POLL_S
    os.close(read)
    os.close(write)


def test_a_long_answer_is_looked_for_less_and_less_and_keeps_the_pulse_high(
    slept: list[float],
) -> None:
    read, write = os.pipe()
    pulse = Pulse(write)
    pulse.message_arrived()
    for _ in range(1000):
        pulse.sleep(0.5)
    assert slept[0] == node.REPLY_POLL_S
    assert slept == sorted(slept)
    assert slept[-1] == node.MAX_REPLY_POLL_S
    pulse.sleep(EMPTY_INBOX_S)
    assert slept[-1] == node.ACTIVE_POLL_S
    os.close(read)
    os.close(write)


def test_flowers_loop_is_the_one_this_was_written_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import inspect

    assert "time.sleep(3)" in inspect.getsource(loop.start_client_internal)
    monkeypatch.setattr(loop, "time", loop.time)
    replace_sleep(loop, lambda _seconds: None)
