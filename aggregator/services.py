"""`aggregator up`: the SuperLink and the release API, supervised as two child processes."""

import os
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aggregator.enrolment import EnrolmentError, register_sites, revoked_keys
from aggregator.home import HOME_VARIABLE, AggregatorHome, HomeError
from aggregator.occupancy import occupied
from aggregator.resumption import go_on
from aggregator.superlink import (
    READY_LINE,
    READY_WITHIN_S,
    SuperLinkError,
    superlink,
    superlink_command,
    superlink_environment,
    tidy_database,
)
from shared.processes import (
    Process,
    ProcessError,
    become_subreaper,
    spawn,
    stop_all,
    wait_for_line,
)

GRACE_S = 8.0
GRACEFUL_S = 5
"""What downloads have left when the API stops; then what they got is written down."""
RESTART_AFTER_S = 2.0
SETTLED_S = 60.0
"""A program that ran this long and ends is started again at once; one that did not, ever later."""
MAX_RESTART_AFTER_S = 30.0
PORT_FREE_WITHIN_S = 12.0
"""What a killed ``up`` leaves behind ends within this time."""


class ServiceError(RuntimeError):
    """A program that cannot be started; the text says why."""


@dataclass(frozen=True)
class Service:
    """A program of the aggregator and how it is started."""

    name: str
    start: Callable[[], Process]


def run_services(home: AggregatorHome, *, say: Callable[[str], None]) -> int:
    """Starts both, says when they are ready, and keeps them up until SIGTERM or SIGINT.

    Raises ``ServiceError`` where one cannot be started the first time, ``OccupiedError`` where it
    runs already.
    """
    become_subreaper()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    services = [
        Service("superlink", lambda: start_superlink(home)),
        Service("api", lambda: start_api(home)),
    ]
    running: dict[str, Process] = {}
    try:
        with occupied(home):
            _await_port("127.0.0.1", home.settings.superlink_port, field="superlink_port")
            _await_port(home.settings.api_host, home.settings.api_port, field="api_port")
            for service in services:
                running[service.name] = service.start()
            say(f"SuperLink ready on {home.superlink_address} (TLS), release API on {home.api_url}")
            going_on = threading.Thread(target=go_on, args=(home, stop, say), daemon=True)
            going_on.start()
            _supervise(services, running, stop=stop, say=say)
    except ProcessError as error:
        raise ServiceError(str(error)) from None
    finally:
        stop_all(list(running.values()), grace_s=GRACE_S)
    return 0


def _supervise(
    services: list[Service],
    running: dict[str, Process],
    *,
    stop: threading.Event,
    say: Callable[[str], None],
) -> None:
    started = dict.fromkeys(running, time.monotonic())
    pause_s = dict.fromkeys(running, RESTART_AFTER_S)
    while not stop.wait(0.5):
        for service in services:
            code = running[service.name].poll()
            if code is None:
                continue
            if time.monotonic() - started[service.name] > SETTLED_S:
                pause_s[service.name] = RESTART_AFTER_S
            say(f"{service.name} ended with {code}; starting it again")
            if stop.wait(pause_s[service.name]):
                return
            pause_s[service.name] = min(2 * pause_s[service.name], MAX_RESTART_AFTER_S)
            started[service.name] = time.monotonic()
            stop_all([running[service.name]], grace_s=1.0)
            try:
                running[service.name] = service.start()
            except (ProcessError, SuperLinkError, EnrolmentError, sqlite3.Error) as error:
                say(str(error))


def start_superlink(home: AggregatorHome) -> Process:
    """Starts the SuperLink on its tidied database and tells it of all sites."""
    tidy_database(home.database, revoked=revoked_keys(home))
    process = spawn(
        superlink_command(home),
        log=home.logs / "superlink.log",
        env=superlink_environment(home),
        cwd=home.flower,
    )
    try:
        wait_for_line(process, READY_LINE, timeout_s=READY_WITHIN_S)
        with superlink(home) as link:
            register_sites(home, link)
    except BaseException:
        stop_all([process], grace_s=GRACE_S)
        raise
    return process


def start_api(home: AggregatorHome) -> Process:
    """Starts the release API."""
    process = spawn(
        [sys.executable, "-P", "-m", "aggregator.services"],
        log=home.logs / "api.log",
        env={HOME_VARIABLE: str(home.root)},
    )
    try:
        wait_for_line(process, READY_LINE, timeout_s=READY_WITHIN_S)
    except BaseException:
        stop_all([process], grace_s=GRACE_S)
        raise
    return process


def _await_port(host: str, port: int, *, field: str) -> None:
    """Returns once the port is free: what a killed ``up`` left is gone within seconds."""
    deadline = time.monotonic() + PORT_FREE_WITHIN_S
    while True:
        try:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise ServiceError(
                    f"port {port} of {host} cannot be used ({error.strerror}): stop what uses it, "
                    f"or set {field} in aggregator.toml to a free port"
                ) from None
        time.sleep(0.3)


def serve_api() -> None:
    """The API process: uvicorn over ``aggregator.api``."""
    import uvicorn

    from aggregator.api import create_app
    from aggregator.database import DatabaseError
    from aggregator.store import StoreError

    home = AggregatorHome(Path(os.environ[HOME_VARIABLE]))
    try:
        app = create_app(home.root)
    except (DatabaseError, HomeError, StoreError) as error:
        sys.exit(f"error: {error}")
    uvicorn.run(
        app,
        host=home.settings.api_host,
        port=home.settings.api_port,
        # Whose word on addresses counts is the setting behind_proxy's.
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=GRACEFUL_S,
    )


if __name__ == "__main__":
    serve_api()
