"""The edge proxy that `aggregator up` starts with ``edge = true``: nginx with our configuration.

The files beside this one are those of ``deploy/edge``, to the byte. In ``edge/`` of the home they
lie with this home's paths and ports in them, written anew at each start; what an operator turns on
is in ``edge/enabled/``, and stays.
"""

import os
import pwd
import re
import shutil
import socket
import time
from pathlib import Path

from aggregator.home import AggregatorHome
from shared.durable import write_durably
from shared.processes import Process, ProcessError, spawn, stop_all

CONFIGURATION = Path(__file__).parent
FILES = ("nginx.conf", "edge.conf", "desk.conf", "serving.conf", "files.conf")
SMALL_FILES = {"serving.conf": "http", "files.conf": "enabled"}
"""Where what answers for small files takes effect: only with ``edge_log``."""
READY_WITHIN_S = 15.0
GRACE_S = 5.0
_PATH = re.compile(r"/[A-Za-z0-9/._-]*")


class EdgeError(ProcessError):
    """An edge proxy that cannot be started; the text says why and what to do."""


def start_edge(home: AggregatorHome) -> Process:
    """Starts nginx and returns when it listens; raises ``ProcessError``."""
    folder = write_configuration(home)
    command = [nginx(), "-p", f"{folder}/", "-e", "stderr", "-c", str(folder / "nginx.conf")]
    process = spawn(command, log=home.logs / "edge.log")
    deadline = time.monotonic() + READY_WITHIN_S
    try:
        while not _listens(home.settings.edge_port):
            code = process.poll()
            if code is not None or time.monotonic() >= deadline:
                last = "".join(f"\n  {line}" for line in process.lines()[-6:])
                why = "did not listen in time" if code is None else f"ended with {code}"
                raise EdgeError(f"edge: nginx {why} ({process.log}){last}")
            time.sleep(0.05)
    except BaseException:
        stop_all([process], grace_s=GRACE_S)
        raise
    return process


def nginx() -> str:
    """Where nginx is; raises ``EdgeError``."""
    # Not everybody's PATH has what is for administrators.
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise EdgeError(
            "edge = true, and there is no nginx: install it (Debian: apt-get install nginx), or "
            "set edge = false in aggregator.toml and run the proxy elsewhere"
        )
    return found


def write_configuration(home: AggregatorHome) -> Path:
    """Writes nginx's files for this home; gives their folder. Raises ``EdgeError``."""
    settings, folder = home.settings, home.root / "edge"
    blobs = Path(home.blobs) if "://" not in str(home.blobs) else home.root / "blobs"
    edge_log = Path(settings.edge_log or home.root / "edge-log")
    for place in (home.root, blobs, edge_log):
        if not _PATH.fullmatch(str(place)):
            raise EdgeError(
                f"edge: {place} has characters that nginx reads as its own: move it to a path of "
                "letters, digits, . _ and -"
            )
    for name in ("enabled", "http", "tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    changes = {
        "listen 8443 ssl": f"listen {settings.edge_port} ssl",
        "127.0.0.1:9443": home.superlink_address,
        "127.0.0.1:8080": home.api_url.removeprefix("http://"),
        "/aggregator/tls": str(home.tls),
        "/aggregator/blobs": str(blobs),
        "/aggregator/edge-log": str(edge_log),
        "/etc/fedstill/edge": str(folder),
        "/tmp/": f"{folder}/tmp/",
    }
    pattern = re.compile("|".join(map(re.escape, changes)))
    for name in FILES:
        text = (CONFIGURATION / name).read_text("utf-8")
        text = pattern.sub(lambda found: changes[found[0]], text)
        if name == "nginx.conf" and os.geteuid() == 0:
            # Else its workers are nobody, who may not read the releases.
            owner = pwd.getpwuid(home.root.stat().st_uid).pw_name
            text = f"user {owner};\n{text}"
        write_durably(folder / name, text.encode())
    for name, place_of in SMALL_FILES.items():
        taken = folder / place_of / name
        if settings.edge_log:
            write_durably(taken, (folder / name).read_bytes())
        else:
            taken.unlink(missing_ok=True)
    return folder


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
