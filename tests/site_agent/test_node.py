import os
import time

import flwr.supernode.start_client_internal as loop
import pytest
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity

from site_agent import node
from site_agent.node import EMPTY_INBOX_S, Pulse, abandoning
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


def test_a_run_that_was_stopped_meanwhile_fails_as_anything_else() -> None:
    def step(_run_id: int, _object_id: str) -> bytes:
        raise RunNotRunningException

    with pytest.raises(ConnectionAbortedError):
        abandoning(step)(1, "o")
    assert abandoning(lambda run_id, object_id: (run_id, object_id))(1, "o") == (1, "o")


def test_a_message_of_a_stopped_run_leaves_no_task_behind() -> None:
    from flwr.app import Message, RecordDict
    from flwr.supercore.inflatable.inflatable_object import get_object_tree
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supercore.run import Run
    from flwr.supernode.nodestate import NodeStateFactory

    store = ObjectStoreFactory()
    state = NodeStateFactory(objectstore_factory=store).state()
    state.set_node_id(7)
    state.store_run(Run.create_empty(3))
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 3, 7, 1
    message = Message(RecordDict(), 7, "query.summarise")
    message.metadata.__dict__["_message_id"] = message.object_id

    def stopped(*_: object) -> bytes:
        raise RunNotRunningException

    def pull(step: object) -> object:
        return loop._pull_and_store_message(
            state=state,
            object_store=store.store(),
            node_config={},
            receive=lambda: (message, get_object_tree(message)),
            get_run=stopped,
            get_fab=stopped,
            pull_object=step,
            confirm_message_received=stopped,
            trusted_entities=None,
        )

    assert pull(abandoning(stopped)) is None
    assert not [task for task in state.get_tasks() if task.status.status != "finished"]
    assert pull(stopped) is None  # the control: Flower itself leaves one
    assert [task for task in state.get_tasks() if task.status.status != "finished"]


def test_flowers_loop_is_the_one_this_was_written_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import inspect

    assert "time.sleep(3)" in inspect.getsource(loop.start_client_internal)
    monkeypatch.setattr(loop, "time", loop.time)
    replace_sleep(loop, lambda _seconds: None)
