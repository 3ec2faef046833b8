"""`aggregator up`: SuperLink, release API and edge proxy, supervised as child processes."""

import os
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
from functools import partial
from pathlib import Path

from aggregator.edge import start_edge
from aggregator.enrolment import register_sites, revoked_keys
from aggregator.events import Event, note
from aggregator.executor import executor_command
from aggregator.home import HOME_VARIABLE, AggregatorHome, HomeError
from aggregator.metrics import FOLDER_VARIABLE, metrics_folder, monitored
from aggregator.occupancy import occupied
from aggregator.resumption import go_on
from aggregator.superlink import (
    READY_LINE,
    READY_WITHIN_S,
    superlink,
    superlink_command,
    superlink_environment,
    tidy_database,
)
from aggregator.supervisor import GRACE_S, Service, Supervisor
from aggregator.vacuum import done, size_of, wanted
from shared.durable import write_durably
from shared.log_lines import LogFormat, settled
from shared.metrics_server import PortError
from shared.processes import (
    Process,
    ProcessError,
    become_subreaper,
    spawn,
    stop_all,
    wait_for_line,
)

FORMAT_VARIABLE = "FEDSTILL_LOG_FORMAT"
GRACEFUL_S = 5
"""What downloads have left when the API stops; then what they got is written down."""
PORT_FREE_WITHIN_S = 12.0
"""What a killed ``up`` leaves behind ends within this time."""


class ServiceError(RuntimeError):
    """A program that cannot be started; the text says why."""


def run_services(home: AggregatorHome, *, form: LogFormat) -> int:
    """Starts all, says when they are ready, and keeps them up until SIGTERM or SIGINT.

    Raises ``ServiceError`` where one cannot be started the first time, ``OccupiedError`` where it
    runs already.
    """
    become_subreaper()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    services = [
        Service("superlink", partial(start_superlink, home)),
        Service("api", partial(start_api, home, form=form)),
    ]
    if home.settings.edge:
        services.append(Service("edge", lambda: (start_edge(home),)))
    supervisor = Supervisor(services, log=home.logs / "up.log")
    counts = metrics_folder(home)
    settings = home.settings
    try:
        with occupied(home):
            _await_port("127.0.0.1", settings.superlink_port, field="superlink_port")
            _await_port(settings.api_host, settings.api_port, field="api_port")
            if settings.edge:
                _await_port("0.0.0.0", settings.edge_port, field="edge_port")
            shutil.rmtree(counts, ignore_errors=True)
            counts.mkdir(mode=0o700)
            supervisor.begin()
            api = home.api_url.removeprefix("http://")
            note(Event.READY, superlink=home.superlink_address, api=api)
            if settings.edge:
                note(Event.EDGE_READY, port=settings.edge_port)
            going_on = threading.Thread(
                target=go_on, args=(home, stop, _tell_run), daemon=True, name="runs"
            )
            going_on.start()
            with monitored(home, supervisor):
                supervisor.watch(stop, errands=[partial(_vacuum, home, supervisor)])
    except (ProcessError, PortError) as error:
        raise ServiceError(str(error)) from None
    finally:
        supervisor.end()
    note(Event.STOPPED)
    return 0


def _tell_run(run: str) -> None:
    note(Event.RUN_GOES_ON, run=run)


def _vacuum(home: AggregatorHome, supervisor: Supervisor) -> None:
    """Starts the SuperLink again where somebody asked for it and no run is worked on."""
    if wanted(home):
        before = size_of(home.database)
        supervisor.replace("superlink")  # its start vacuums
        won = done(home, before=before)
        note(Event.VACUUMED, bytes_before=won.before, bytes_after=won.after)


def start_superlink(home: AggregatorHome) -> tuple[Process, ...]:
    """Starts the SuperLink on its tidied database, its executor, and tells it of all sites."""
    tidy_database(home.database, revoked=revoked_keys(home))
    home.executor_secret.unlink(missing_ok=True)
    write_durably(home.executor_secret, secrets.token_bytes(32))
    started = []
    try:
        for name, command in (
            ("superlink", superlink_command(home)),
            ("executor", executor_command(home)),
        ):
            log, environment = home.logs / f"{name}.log", superlink_environment(home)
            started.append(spawn(command, log=log, env=environment, cwd=home.flower))
        wait_for_line(started[0], READY_LINE, timeout_s=READY_WITHIN_S)
        with superlink(home) as link:
            register_sites(home, link)
    except BaseException:
        stop_all(started, grace_s=GRACE_S)
        raise
    return tuple(started)


def start_api(home: AggregatorHome, *, form: LogFormat) -> tuple[Process, ...]:
    """Starts the release API, whose log has that format."""
    process = spawn(
        [sys.executable, "-P", "-m", "aggregator.services"],
        log=home.logs / "api.log",
        env={
            HOME_VARIABLE: str(home.root),
            FORMAT_VARIABLE: form.value,
            FOLDER_VARIABLE: str(metrics_folder(home)),
        },
    )
    try:
        wait_for_line(process, READY_LINE, timeout_s=READY_WITHIN_S)
    except BaseException:
        stop_all([process], grace_s=GRACE_S)
        raise
    return (process,)


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
    from aggregator.api.log import log_config
    from aggregator.database import DatabaseError
    from aggregator.store import StoreError

    home = AggregatorHome(Path(os.environ[HOME_VARIABLE]))
    form = settled(LogFormat(os.environ.get(FORMAT_VARIABLE, LogFormat.AUTO)))
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
        log_config=log_config(form),
        access_log=False,  # addresses are personal data, and paths may name who asks for what
    )


if __name__ == "__main__":
    serve_api()
