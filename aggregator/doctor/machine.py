"""Checks of the machine: what listens, how much room there is, and whether the time is right."""

import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from aggregator.database import DatabaseError, condition
from aggregator.edge import EdgeError, nginx
from aggregator.home import AggregatorHome
from aggregator.occupancy import is_up
from aggregator.superlink import SuperLinkError, superlink
from shared.findings import Finding, failed, good, unjudged, warning

GIB = 1 << 30
LEAST_DISK, GOOD_DISK = GIB, 10 * GIB
ANSWER_WITHIN_S = 5.0
AHEAD_S = 120.0
"""Files of ours that are so much newer than now tell of a clock that was set back."""
NOTABLE_SKEW_S = 5.0


def up(home: AggregatorHome) -> Finding:
    """Whether the aggregator runs; that it does not is nothing wrong."""
    if is_up(home):
        return good("up", "`aggregator up` runs")
    return good("up", "`aggregator up` does not run: sites and researchers find nobody")


def superlink_port(home: AggregatorHome) -> Finding:
    """Whether the SuperLink answers, or could listen."""
    check, port = "SuperLink", home.settings.superlink_port
    if not is_up(home):
        return _listenable(check, "127.0.0.1", port, field="superlink_port")
    if not (home.tls / "ca.crt").exists():
        return unjudged(check, "there is no CA to know it by", "see CA")
    try:
        with superlink(home) as link:
            online = sum(node.online for node in link.nodes())
    except SuperLinkError as error:
        return failed(
            check, str(error), "look into logs/superlink.log; `up` starts it again by itself"
        )
    return good(check, f"answers on port {port}; {online} sites online")


def api_port(home: AggregatorHome) -> Finding:
    """Whether the API answers that it is ready, or could listen."""
    check, settings = "API", home.settings
    if not is_up(home):
        return _listenable(check, settings.api_host, settings.api_port, field="api_port")
    try:
        answer = httpx.get(f"{home.api_url}/readyz", timeout=ANSWER_WITHIN_S, trust_env=False)
        checks = answer.json()["checks"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return failed(
            check,
            f"{home.api_url} does not answer ({type(error).__name__})",
            "look into logs/api.log; `up` starts it again by itself",
        )
    broken = [name for name, passed in checks.items() if not passed]
    if broken:
        return failed(check, f"not ready: {', '.join(broken)}", f"see {broken[0]} below")
    return good(check, f"ready on {home.api_url}")


def edge(home: AggregatorHome) -> Finding:
    """Whether the edge proxy lets sites through, and nobody to what could start code."""
    check, settings = "edge", home.settings
    if not settings.edge:
        return good(check, "not of `up`, by edge: one of yours must be in front")
    try:
        nginx()
    except EdgeError as error:
        return failed(check, str(error), "as it says there")
    if not is_up(home):
        return _listenable(check, "0.0.0.0", settings.edge_port, field="edge_port")
    try:
        context = ssl.create_default_context(cafile=str(home.tls / "ca.crt"))
        url = f"https://localhost:{settings.edge_port}"
        with httpx.Client(
            base_url=url, verify=context, timeout=ANSWER_WITHIN_S, trust_env=False
        ) as client:
            passed = client.get("/livez").status_code
            closed = [client.get(f"/v1/{name}/x").status_code for name in ("control", "runtime")]
    except (httpx.HTTPError, OSError) as error:
        return failed(
            check,
            f"port {settings.edge_port} does not answer ({type(error).__name__})",
            "look into logs/edge.log; `up` starts it again by itself",
        )
    if closed != [httpx.codes.FORBIDDEN] * 2:
        return failed(
            check,
            "/v1/control or /v1/runtime answers: who reaches it can start code",
            "stop `aggregator up`; remove what was added to edge/enabled/ of the home",
        )
    if passed != httpx.codes.OK:
        return failed(check, f"/livez answers with HTTP {passed}", "see API")
    return good(check, f"port {settings.edge_port} passes /v1/fleet and the API, nothing else")


def metrics_port(home: AggregatorHome) -> Finding:
    """Whether metrics are served, or could be."""
    check, port = "metrics", home.settings.metrics_port
    if not port:
        return good(check, "none, by metrics_port")
    if not is_up(home):
        return _listenable(check, "127.0.0.1", port, field="metrics_port")
    try:
        url = f"http://127.0.0.1:{port}/livez"
        httpx.get(url, timeout=ANSWER_WITHIN_S, trust_env=False).raise_for_status()
    except httpx.HTTPError as error:
        return failed(
            check,
            f"port {port} does not answer ({type(error).__name__})",
            "start `aggregator up` again: it reads the settings when it begins",
        )
    return good(check, f"served on port {port} of this machine")


def _listenable(check: str, host: str, port: int, *, field: str) -> Finding:
    problem = why_not_listen(host, port)
    if problem is not None:
        return failed(
            check,
            f"port {port} of {host} cannot be used ({problem})",
            f"stop what uses it, or set {field} in aggregator.toml to a free port",
        )
    return good(check, f"port {port} of {host} is free")


def why_not_listen(host: str, port: int) -> str | None:
    """What the system says against listening there; None where nothing is."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return str(error.strerror)
    return None


def clock(home: AggregatorHome) -> Finding:
    """Whether the time agrees with what was written before, and with the database's server."""
    check, now = "clock", time.time()
    newest = max((path.stat().st_mtime for path in _written(home)), default=0.0)
    if newest > now + AHEAD_S:
        return failed(
            check,
            f"files of this home are {(newest - now) / 60:.0f} minutes newer than now",
            "set the clock (`timedatectl set-ntp true`): certificates, tokens and heads go by it",
        )
    if home.settings.database:
        try:
            ahead_s = condition(home.settings.database).ahead_s
        except DatabaseError:
            return unjudged(
                check, "the database's server cannot be asked for the time", "see catalog"
            )
        if ahead_s is not None and abs(ahead_s) > NOTABLE_SKEW_S:
            return warning(
                check,
                f"the database's server is {abs(ahead_s):.0f} s "
                f"{'ahead' if ahead_s > 0 else 'behind'}",
                "set both clocks by NTP (`timedatectl set-ntp true`)",
            )
    return good(check, "nothing here was written in the future")


def _written(home: AggregatorHome) -> Iterator[Path]:
    yield from (path for path in (home.settings_file, home.database) if path.exists())
    yield from home.runs.glob("*/*.json*")


def disk(home: AggregatorHome) -> Finding:
    """Whether there is room for the next run, the next release and a VACUUM, bytes."""
    check = "disk"
    runs = [_size(run) for run in home.runs.iterdir() if run.is_dir()] if home.runs.is_dir() else []
    flower = home.database.stat().st_size if home.database.exists() else 0
    # A run like the largest, its release beside it, and Flower's database written anew.
    wanted = 2 * max(runs, default=0) + flower
    places = {"the home": home.root}
    if isinstance(home.blobs, Path) or "://" not in home.blobs:
        blobs = Path(home.blobs)
        places["the releases' files"] = blobs if blobs.exists() else home.root
    told = []
    for what, place in places.items():
        free = shutil.disk_usage(place).free
        told.append(f"{_gib(free)} free for {what}")
        if free < max(LEAST_DISK, wanted):
            return failed(
                check,
                f"{_gib(free)} free for {what}; {_gib(max(LEAST_DISK, wanted))} are wanted",
                "make room: `aggregator vacuum`, old runs, or a larger disk",
            )
        if free < max(GOOD_DISK, 3 * wanted):
            return warning(
                check, f"{_gib(free)} free for {what}", "make room before the next large run"
            )
    return good(check, "; ".join(told))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
