"""The site's SuperNode process: Flower's own, with a faster pulse and our executor beside it.

Flower asks for messages every 3 s and starts a process for each. Here the SuperNode asks four times
a second while a run is on and once a second else, and wakes an executor that waits
(``superexec.py``).
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import flwr.supernode.fleet_http_connection as connection
import flwr.supernode.start_client_internal as loop
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supercore.run import RunNotRunningException

from shared.flower import replace
from site_agent.environment import CONTACT_VARIABLE
from site_agent.fleet import Losses, bear_faults, beating, start_afresh
from site_agent.superexec import CHILD_LIFE_S, replace_sleep

ACTIVE_POLL_S = 0.25
IDLE_POLL_S = 1.0
ACTIVE_FOR_S = 30.0
"""How long after a message the node keeps asking often."""
REPLY_POLL_S = 0.03
MAX_REPLY_POLL_S = 0.25
FIRST_BACKOFF_S = 0.1
CONTACT_EVERY_S = 1.0
"""How often at most the time of the last contact is written down."""
EMPTY_INBOX_S = 3
"""The pause that Flower makes where no message was there; the others wait for the ClientApp."""

# The package exports a function under the name of this module.
command = import_module("flwr.supernode.cli.flower_supernode")


class Pulse:
    """Decides how long the SuperNode sleeps, and wakes the executor when a message is there."""

    def __init__(self, wake_fd: int) -> None:
        self._wake_fd = wake_fd
        self._last_message = self._last_work = float("-inf")

    def message_arrived(self) -> None:
        """Keeps the pulse high for a while and wakes the executor."""
        self._last_message = self._last_work = time.monotonic()
        os.write(self._wake_fd, b".")

    def sleep(self, seconds: float) -> None:
        """Stands in for ``time.sleep`` in the SuperNode's loop."""
        now = time.monotonic()
        if seconds < EMPTY_INBOX_S:
            self._last_work = now
            waited = now - self._last_message
            if waited > CHILD_LIFE_S:  # its ClientApp is gone without an answer: start afresh
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(min(max(REPLY_POLL_S, waited / 20), MAX_REPLY_POLL_S))
        elif now - self._last_work < ACTIVE_FOR_S:
            time.sleep(ACTIVE_POLL_S)
        else:
            time.sleep(IDLE_POLL_S)


class Contact:
    """Keeps the time at which the aggregator last answered, as the time of a file's change."""

    def __init__(self, path: Path) -> None:
        self._path, self._kept = path, float("-inf")

    def now(self) -> None:
        """It has answered. That this cannot be kept, on a full disk, stops nothing."""
        if time.monotonic() - self._kept >= CONTACT_EVERY_S:
            self._kept = time.monotonic()
            with suppress(OSError):
                self._path.touch(mode=0o600)

    def after(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A step that has an answer where it returns one, or does not raise."""

        def attempt(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            if result is not False:  # what a heartbeat that failed returns
                self.now()
            return result

        return attempt


def main(secret_file: str) -> None:
    """Runs ``flower-supernode`` with the rest of the command line; does not return."""
    wake_read, wake_write = os.pipe()
    pulse = Pulse(wake_write)
    contact = Contact(Path(os.environ[CONTACT_VARIABLE]))
    pull_message, push_messages = loop._pull_and_store_message, loop._push_messages
    start = command.start_client_internal

    def pull_and_wake(**kwargs: Any) -> int | None:
        losses = Losses()
        for step in ("pull_object", "confirm_message_received"):
            kwargs[step] = losses.noticing(abandoning(kwargs[step]))
        kwargs["receive"] = contact.after(kwargs["receive"])
        run_id: int | None = pull_message(**kwargs)
        if run_id is None:  # else what failed, an object that was not there yet, did so in passing
            losses.settle()
        else:
            pulse.message_arrived()
        return run_id

    def push_and_settle(**kwargs: Any) -> None:
        losses = Losses()
        for step in ("send", "push_object"):
            kwargs[step] = losses.noticing(kwargs[step])
        push_messages(**kwargs)
        losses.settle()

    def start_with_executor(*, runtime_api_address: str, **kwargs: Any) -> None:
        executor = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "site_agent.superexec"),
                *(runtime_api_address, secret_file, str(wake_read)),
            ],
            pass_fds=[wake_read],
        )
        os.close(wake_read)
        threading.Thread(target=_end_with, args=[executor], daemon=True).start()
        start(runtime_api_address=runtime_api_address, **kwargs)
        start_afresh()  # it has given up: its threads would keep it alive, and deaf

    bear_faults()
    replace(
        connection, "HeartbeatSender", lambda beat: HeartbeatSender(beating(contact.after(beat)))
    )
    replace_sleep(loop, pulse.sleep)
    replace(loop, "_pull_and_store_message", pull_and_wake)
    replace(loop, "_push_messages", push_and_settle)
    replace(loop, "pull_objects", partial(pull_objects, initial_backoff=FIRST_BACKOFF_S))
    replace(command, "start_client_internal", start_with_executor)
    command.flower_supernode()


def abandoning(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step of receiving a message that fails as any other where its run was stopped meanwhile.

    Flower's own exception for that passes by its tidying up: the task would stay, and its ClientApp
    wait for two hours for the rest of the message.
    """

    def attempt(*args: Any) -> Any:
        try:
            return step(*args)
        except RunNotRunningException:
            raise ConnectionAbortedError("the run has ended") from None

    return attempt


def _end_with(executor: subprocess.Popen[bytes]) -> None:
    """A SuperNode without an executor answers nothing: end, and be started again."""
    executor.wait()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    secret = sys.argv[1]
    sys.argv = ["flower-supernode", *sys.argv[2:]]
    main(secret)
