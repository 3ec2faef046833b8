"""`site-agent connect`: keeps the site's SuperNode running and connected.

The SuperNode has the network and no images. It runs ``node.py`` (Flower's SuperNode with a faster
pulse), which starts ``superexec.py`` (the executor that answers with our ClientApp alone).
"""

import os
import secrets
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import typer

from shared.processes import (
    Process,
    ProcessError,
    become_subreaper,
    spawn,
    stop_all,
    wait_for_line,
)
from site_agent.environment import CONTACT_VARIABLE, SITE_VARIABLE, SOCKET_VARIABLE
from site_agent.events import Event, Note, note
from site_agent.monitoring import monitored
from site_agent.settings import SiteSettings

CONNECTED_LINE = "SuperNode ID"
QUIET_FOR_S = 15.0
"""A connection that takes longer is worth a word."""
RESTART_AFTER_S = 3.0
MAX_RESTART_AFTER_S = 8.0
"""The aggregator refuses a node that was killed while it still counts as online, for half a minute.
"""
GRACE_S = 8.0
EXPLANATIONS = (
    (
        "[code: 2004]",
        "key-refused",
        "the aggregator does not accept this site's key, or no longer: hand it enrolment.json "
        "(`aggregator site add`); after a crash here it accepts the key again in half a minute",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "certificate-refused",
        "aggregator-ca.crt does not vouch for the aggregator, or its certificate has another name: "
        "check the address in site.toml, and ask for a new kit (`site-agent join`)",
    ),
)
"""Signs in what the SuperNode wrote, a code, and what they mean to the site's staff."""


def connect(settings: SiteSettings) -> int:
    """Connects the site and stays connected until SIGTERM or SIGINT; gives the exit code.

    Notes ``supernode ready`` once connected, and why not where it is not. Raises
    ``PortError`` where the metrics' port is not to be had.
    """
    for path, fix in (
        (settings.key_path, "run `site-agent init` first"),
        (settings.ca_path, "ask the aggregator's operator for the kit and `site-agent join` it"),
    ):
        if not path.exists():
            typer.echo(f"{path} is missing: {fix}", err=True)
            return 2
    become_subreaper()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with monitored(settings):
        keep_connected(settings, stop=stop)
    return 0


def keep_connected(settings: SiteSettings, *, stop: threading.Event, note: Note = note) -> None:
    """Starts the SuperNode again whenever it ends, until ``stop`` is set.

    The aggregator may be away for any time, at the start too: the SuperNode tries again for ever,
    20 s apart at most, and this loop starts it again where it ends.
    """
    pause_s = RESTART_AFTER_S
    while not stop.is_set():
        process = start_supernode(settings)
        try:
            if _await_connection(process, stop=stop, note=note):
                pause_s = RESTART_AFTER_S
                note(Event.SUPERNODE_READY, site=settings.name, aggregator=settings.aggregator)
            while process.poll() is None and not stop.wait(0.5):
                pass
            if not stop.is_set():
                reason, hint = explain_end(process.lines())
                note(Event.NOT_CONNECTED, reason=reason, hint=f"{hint}; trying again")
        finally:
            stop_all([process], grace_s=GRACE_S)
        stop.wait(pause_s)
        pause_s = min(2 * pause_s, MAX_RESTART_AFTER_S)


def _await_connection(process: Process, *, stop: threading.Event, note: Note) -> bool:
    patience = time.monotonic() + QUIET_FOR_S
    while process.poll() is None and not stop.is_set():
        if time.monotonic() > patience:
            hint = "the aggregator does not answer yet; still trying"
            note(Event.NOT_CONNECTED, reason="no-answer", hint=hint)
            patience = float("inf")
        try:
            wait_for_line(process, CONNECTED_LINE, timeout_s=0.2)
        except ProcessError:
            continue  # not yet, or ended: the loop's condition tells
        return True
    return False


def explain_end(lines: list[str]) -> tuple[str, str]:
    """Why a SuperNode ended, from what it wrote: a code, and a line for the site's staff.

    Never what it wrote itself, which may repeat what it was sent.
    """
    text = "\n".join(lines)
    for sign, code, meaning in EXPLANATIONS:
        if sign in text:
            return code, meaning
    return "ended", "supernode.log in the site's logs has its last words"


def start_supernode(settings: SiteSettings) -> Process:
    """Starts ``node.py`` with the site's key and the aggregator's certificate."""
    folder = settings.home / "flower"
    folder.mkdir(mode=0o700, exist_ok=True)
    secret = folder / "executor.secret"
    _write_secret(secret)
    return spawn(
        [
            *(sys.executable, "-P", "-m", "site_agent.node", str(secret)),
            *("--superlink", settings.aggregator),
            *("--root-certificates", str(settings.ca_path)),
            *("--auth-supernode-private-key", str(settings.key_path)),
            *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
            *("--host", "127.0.0.1", "--port", str(_free_port())),
        ],
        log=settings.logs_path / "supernode.log",
        env={
            SITE_VARIABLE: settings.name,
            SOCKET_VARIABLE: str(settings.socket_path),
            CONTACT_VARIABLE: str(settings.contact_path),
            "FLWR_HOME": str(folder),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            **_direct_loopback(),
        },
        cwd=folder,
    )


def _write_secret(path: Path) -> None:
    """A new secret for each start: only our executor may take the site's tasks."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secrets.token_bytes(32))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _direct_loopback() -> dict[str, str]:
    """Keeps a hospital's proxy away from connections inside this machine."""
    present = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
    value = f"{present},localhost,127.0.0.1" if present else "localhost,127.0.0.1"
    return {"NO_PROXY": value, "no_proxy": value}
