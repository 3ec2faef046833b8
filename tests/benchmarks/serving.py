"""The release API beside nginx serving the same files: requests a second, p99, memory.

    python tests/benchmarks/serving.py [--seconds 5] [--rounds 3] [--json FILE]

A private dataset with files of 1 KB, 256 KB and 50 MB is served by one uvicorn worker, which checks
a token and writes down each download, by the same behind nginx that sends what the API lets through
(X-Accel-Redirect), by the same behind the edge proxy as it is shipped, which answers for small
files by itself, and by nginx alone from the same folder, which checks and writes nothing. wrk
asks each in turn over 32 connections, several rounds; medians count. Then 200 downloads of the
50 MB file at once, over 200 connections, while the worker's resident memory is watched. Needs
Debian's nginx and wrk.

Bars: at 256 KB at least 1,000 requests a second or 25% of nginx; with X-Accel-Redirect at least 80%
of nginx at 50 MB, where sending is the work, and so with the edge at 256 KB; every answer of the
edge in the trail of downloads 2 s later; memory within 20 MB over the 200 downloads.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SIZES = {"1 KB": 1_000, "256 KB": 256_000, "50 MB": 50_000_000}
CONNECTIONS = 32
DOWNLOADS = 200
MEMORY_BAR_BYTES = 20e6
REQUESTS_BAR, SHARE_BAR, REDIRECTED_BAR = 1000, 0.25, 0.8
EDGE = Path(__file__).parents[2] / "deploy" / "edge"
TAKEN_WITHIN_S = 2.0


@dataclass(frozen=True)
class Load:
    """What wrk found: requests a second, ms within which 99% were answered, errors, requests."""

    per_s: float
    p99_ms: float
    errors: int
    answered: int


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(*arguments: str) -> str:
    """Runs ``aggregator`` and gives its output."""
    program = Path(sys.executable).with_name("aggregator")
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout


def publish(home: Path) -> dict[str, str]:
    """A private dataset ``fedstill/served`` with a file of each size; the path of each file."""
    from aggregator.catalog import Catalog, StoredFile
    from aggregator.store import BlobStore

    store = BlobStore(home / "blobs")
    files = []
    for label, size in SIZES.items():
        content = os.urandom(size)
        name = f"{label.replace(' ', '').lower()}.bin"
        files.append(StoredFile(path=name, bytes=size, sha256=store.put(content)))
    catalog = Catalog(home / "catalog.sqlite")
    try:
        catalog.publish(
            namespace="fedstill",
            name="served",
            digest=hashlib.sha256(b"served").hexdigest(),
            summary={"task": "ct-denoise", "size_px": 128, "license": "CC0-1.0", "dp": None},
            files=lambda _: files,
        )
    finally:
        catalog.close()
    command("dataset", "set", "served", "--visibility", "private", "--home", str(home))
    return {
        label: f"{file.sha256[:2]}/{file.sha256}" for label, file in zip(SIZES, files, strict=True)
    }


@contextmanager
def api(home: Path, *, accel: bool, edge: bool = False) -> Iterator[tuple[int, int]]:
    """The release API as `aggregator up` starts it, one worker: its port and process."""
    port = free_port()
    settings = (home / "aggregator.toml").read_text()
    settings = re.sub(r"(?m)^api_port = .*$", f"api_port = {port}", settings)
    settings = re.sub(r"(?m)^api_requests_a_minute = .*$", "api_requests_a_minute = 0", settings)
    prefix = '"/blobs/"' if accel else '""'
    settings = re.sub(r"(?m)^accel_prefix = .*$", f"accel_prefix = {prefix}", settings)
    log = f'"{home}/edge-log"' if edge else '""'
    settings = re.sub(r"(?m)^edge_log = .*$", f"edge_log = {log}", settings)
    (home / "aggregator.toml").write_text(settings)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "aggregator.services"],
        env={**os.environ, "FEDSTILL_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        await_answer(f"http://127.0.0.1:{port}/livez")
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


@contextmanager
def nginx(folder: Path, blobs: Path, *, upstream: int | None, edge: bool = False) -> Iterator[int]:
    """One nginx worker: the blobs themselves, or what the API at ``upstream`` lets through.

    ``edge``: with what the edge proxy has for small files, as it is shipped.
    """
    port = free_port()
    shipped = {"serving.conf": "", "files.conf": ""}
    if edge:
        for name in shipped:
            text = (EDGE / name).read_text().replace("http://127.0.0.1:8080", "http://api")
            text = text.replace("/tmp/", f"{folder}/").replace("/aggregator/", f"{blobs.parent}/")
            shipped[name] = text
    files = f"alias {blobs}/;"
    if upstream is None:
        locations = f"location /blobs/ {{ {files} }}"
    else:
        locations = (
            f"{shipped['files.conf']} location /blobs/ {{ internal; {files} }}"
            f"location / {{ proxy_pass http://api; "
            'proxy_set_header Connection ""; }'
        )
    folder.mkdir()
    settings = folder / "nginx.conf"
    settings.write_text(
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log stderr crit;"
        f"{'user root;' if os.geteuid() == 0 else ''}"
        "events { worker_connections 1024; }"
        "http { access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;"
        f"client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;"
        f"fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;"
        f"{shipped['serving.conf']}"
        f"upstream api {{ server 127.0.0.1:{upstream or 1}; keepalive 64; }}"
        "proxy_http_version 1.1;"
        f"server {{ listen 127.0.0.1:{port}; {locations} }} }}"
    )
    binary = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if binary is None:
        raise SystemExit("nginx is not installed: apt-get install nginx-light")
    process = subprocess.Popen([binary, "-c", str(settings), "-p", str(folder)])
    try:
        await_answer(f"http://127.0.0.1:{port}/")
        yield port
    finally:
        process.terminate()
        process.wait()


def await_answer(url: str) -> None:
    """Returns once something answers HTTP there, whatever it says."""
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"nothing answers at {url}")


def loaded(url: str, *, token: str, seconds: float, connections: int = CONNECTIONS) -> Load:
    """Asks for ``url`` over so many connections, as fast as it is answered."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    header = f"Authorization: Bearer {token}"
    output = subprocess.run(
        [
            *("wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "60s"),
            *("--latency", "-H", header, url),
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return read_wrk(output)


def read_wrk(output: str) -> Load:
    """What wrk prints."""
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    last = re.search(r"99%\s+([\d.]+)(us|ms|s|m)", output)
    answered = re.search(r"(\d+) requests in", output)
    if rate is None or last is None or answered is None:
        raise SystemExit(f"wrk said:\n{output}")
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    broken = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output
    )
    errors = sum(int(number) for found in (refused, broken) if found for number in found.groups())
    scale = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}[last[2]]
    return Load(
        per_s=float(rate[1]),
        p99_ms=float(last[1]) * scale,
        errors=errors,
        answered=int(answered[1]),
    )


def resident_bytes(pid: int) -> int:
    """A process's resident set without the file pages it maps."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])  # type: ignore[index]


def memory_over_downloads(url: str, pid: int, *, token: str) -> dict[str, float]:
    """Resident bytes before, at most during, and after ``DOWNLOADS`` downloads at once."""
    before = resident_bytes(pid)
    most, done = before, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.05):
            most = max(most, resident_bytes(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    try:
        # One pass of curl: every file once, all at once, thrown away.
        config = (
            "".join(f'url = "{url}"\noutput = "/dev/null"\n' for _ in range(DOWNLOADS))
            + f'header = "Authorization: Bearer {token}"\nfail\nno-progress-meter\n'
        )
        subprocess.run(
            [
                "curl",
                "--parallel",
                "--parallel-immediate",
                "--parallel-max",
                str(DOWNLOADS),
                "-K",
                "-",
            ],
            input=config,
            text=True,
            check=True,
        )
        seconds = time.perf_counter() - began
    finally:
        done.set()
        watcher.join()
    return {
        "before": before,
        "most": most,
        "after": resident_bytes(pid),
        "seconds": seconds,
        "mb_per_s": DOWNLOADS * SIZES["50 MB"] / 1e6 / seconds,
    }


def measured(root: Path, *, seconds: float, rounds: int) -> dict[str, object]:
    """All of it."""
    home = root / "home"
    command("init", "--home", str(home))
    blobs = publish(home)
    said = command(
        *("token", "create", "benchmark", "--scope", "read:dataset", "--json"),
        *("--home", str(home)),
    )
    token = json.loads(said)["token"]
    path = "datasets/fedstill/served/resolve/v1"
    found: dict[str, dict[str, list[Load]]] = {}
    missing = 0
    with nginx(root / "alone", home / "blobs", upstream=None) as bare:
        for round_number in range(rounds):
            for label, blob in blobs.items():
                url = f"http://127.0.0.1:{bare}/blobs/{blob}"
                load = loaded(url, token=token, seconds=seconds)
                found.setdefault(label, {}).setdefault("nginx", []).append(load)
            with api(home, accel=False) as (port, pid):
                for label in SIZES:
                    name = f"{label.replace(' ', '').lower()}.bin"
                    url = f"http://127.0.0.1:{port}/{path}/{name}"
                    load = loaded(url, token=token, seconds=seconds)
                    found[label].setdefault("api", []).append(load)
                if round_number == rounds - 1:
                    memory = memory_over_downloads(url, pid, token=token)
            with (
                api(home, accel=True) as (port, _),
                nginx(root / f"front{round_number}", home / "blobs", upstream=port) as front,
            ):
                for label in SIZES:
                    name = f"{label.replace(' ', '').lower()}.bin"
                    url = f"http://127.0.0.1:{front}/{path}/{name}"
                    load = loaded(url, token=token, seconds=seconds)
                    found[label].setdefault("api behind nginx", []).append(load)
            with (
                api(home, accel=True, edge=True) as (port, _),
                nginx(root / f"edge{round_number}", home / "blobs", upstream=port, edge=True) as at,
            ):
                for label in SIZES:
                    name = f"{label.replace(' ', '').lower()}.bin"
                    url = f"http://127.0.0.1:{at}/{path}/{name}"
                    shown(url, token=token)
                    before = recorded(home)
                    load = loaded(url, token=token, seconds=seconds)
                    found[label].setdefault("edge", []).append(load)
                    time.sleep(TAKEN_WITHIN_S)
                    missing += max(0, load.answered - load.errors - (recorded(home) - before))
    return judged(found, memory, missing=missing)


def shown(url: str, *, token: str) -> None:
    """Asks until the edge has shown the API that it writes its log."""
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    for _ in range(3):
        urllib.request.urlopen(asked, timeout=60).close()
        time.sleep(0.5)


def recorded(home: Path) -> int:
    """How many downloads are in the trail."""
    with sqlite3.connect(home / "catalog.sqlite") as catalog:
        return int(catalog.execute("SELECT count(*) FROM downloads").fetchone()[0])


def judged(
    found: dict[str, dict[str, list[Load]]], memory: dict[str, float], *, missing: int
) -> dict[str, object]:
    """Medians, the shares of nginx, and whether the bars are cleared."""
    table = {
        label: {
            server: {
                "per_s": statistics.median(load.per_s for load in loads),
                "p99_ms": statistics.median(load.p99_ms for load in loads),
                "spread_per_s": [min(x.per_s for x in loads), max(x.per_s for x in loads)],
                "errors": sum(load.errors for load in loads),
            }
            for server, loads in servers.items()
        }
        for label, servers in found.items()
    }
    share = {
        label: {
            server: row[server]["per_s"] / row["nginx"]["per_s"]  # type: ignore[operator]
            for server in row
            if server != "nginx"
        }
        for label, row in table.items()
    }
    middle = table["256 KB"]["api"]["per_s"]
    errors = sum(one["errors"] for row in table.values() for one in row.values())  # type: ignore[misc]
    return {
        "requests": table,
        "share_of_nginx": share,
        "memory_bytes": memory,
        "missing_in_the_trail": missing,
        "cleared": {
            "256 KB": middle >= REQUESTS_BAR or share["256 KB"]["api"] >= SHARE_BAR,  # type: ignore[operator]
            "redirected, 50 MB": share["50 MB"]["api behind nginx"] >= REDIRECTED_BAR,
            "edge, 256 KB": share["256 KB"]["edge"] >= REDIRECTED_BAR,
            "edge, recorded": missing == 0,
            "memory": max(memory["most"], memory["after"]) - memory["before"] <= MEMORY_BAR_BYTES,
            "no errors": errors == 0,
        },
    }


def main() -> None:
    """Parses the command line and prints the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        found = measured(Path(root), seconds=asked.seconds, rounds=asked.rounds)
    text = json.dumps(found, indent=2)
    print(text)
    if asked.json:
        asked.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
