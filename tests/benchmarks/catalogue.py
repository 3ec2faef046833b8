"""How long the lists of a large catalogue take over HTTP.

    python tests/benchmarks/catalogue.py [--datasets 1000] [--versions 100] [--database URL]
                                         [--json FILE]

A catalogue of so many datasets with so many versions of twelve files each, in SQLite or in an empty
PostgreSQL database, is served by one uvicorn worker and asked over one connection: its first and
last page, one dataset, and pages of its versions. Bar: the first page's median within 50 ms.
"""

import argparse
import hashlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import insert, text

from aggregator.database import Database
from aggregator.home import AggregatorHome
from aggregator.schema import DatasetRow, FileRow, VersionRow

BAR_MS = 50.0
FILES = 12
SERVE = """
import sys
from pathlib import Path
import uvicorn
from aggregator.api import create_app
uvicorn.run(create_app(Path(sys.argv[1])), port=int(sys.argv[2]), log_level="warning", ws="none")
"""


def main() -> int:
    """Measures and prints; gives the exit code: 1 where the bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--datasets", type=int, default=1000)
    parser.add_argument("--versions", type=int, default=100)
    parser.add_argument("--database", default="", help="of an empty PostgreSQL database")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    report = measure(
        datasets=given.datasets,
        versions=given.versions,
        requests=given.requests,
        database=given.database,
    )
    print(json.dumps(report, indent=2))
    if given.json:
        given.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    return 0 if report["cleared"] else 1


def measure(*, datasets: int, versions: int, requests: int, database: str = "") -> dict[str, Any]:
    """Median and 99th percentile of each list, milliseconds, and whether the bar is cleared."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "aggregator.toml").write_text(f'database = "{database}"\n', encoding="utf-8")
        begun = time.perf_counter()
        fill(Database(AggregatorHome(home).catalog), datasets=datasets, versions=versions)
        filled = time.perf_counter() - begun
        with served(home) as client:
            some = f"/api/datasets/fedstill/{name(datasets // 2)}"
            spent = {
                label: timed(client, path, requests=requests)
                for label, path in {
                    "first page of 50": "/api/datasets",
                    "first page of 100": "/api/datasets?limit=100",
                    "last page of 50": f"/api/datasets?offset={max(datasets - 50, 0)}",
                    "a dataset": some,
                    "a page of its versions": f"{some}/versions",
                    "its tags": f"{some}/refs",
                    "a version's files": f"{some}/tree/main",
                }.items()
            }
    first = spent["first page of 50"]["median_ms"]
    return {
        "datasets": datasets,
        "versions_each": versions,
        "database": "PostgreSQL" if database else "SQLite",
        "filled_s": round(filled, 1),
        "lists": spent,
        "bar_ms": BAR_MS,
        "cleared": first < BAR_MS,
    }


def fill(database: Database, *, datasets: int, versions: int) -> None:
    """Puts so many datasets into an empty catalogue, without their blobs."""
    with database.session(write=True) as session:
        for one in range(1, datasets + 1):
            first = (one - 1) * versions
            session.execute(
                insert(DatasetRow),
                {
                    "id": one,
                    "namespace": "fedstill",
                    "name": name(one),
                    "last_number": versions,
                    "newest_number": versions,
                    "head_sequence": versions,
                },
            )
            session.execute(
                insert(VersionRow),
                [
                    {
                        "id": first + number,
                        "dataset_id": one,
                        "number": number,
                        "digest": hashlib.sha256(b"%d %d" % (one, number)).hexdigest(),
                        "created_at": "2026-01-31T12:00:00.000Z",
                        "summary": {"task": "ct-denoise", "size_px": 128, "license": "CC0-1.0"},
                    }
                    for number in range(1, versions + 1)
                ],
            )
            session.execute(
                insert(FileRow),
                [
                    {
                        "version_id": first + number,
                        "path": f"file-{part:02d}.bin",
                        "bytes": 1000 * part,
                        "sha256": hashlib.sha256(b"%d" % part).hexdigest(),
                    }
                    for number in range(1, versions + 1)
                    for part in range(FILES)
                ],
            )
        session.execute(text("ANALYZE"))  # as both databases do by themselves after a while
    database.close()


def name(number: int) -> str:
    """Of a dataset."""
    return f"dataset-{number:05d}"


@contextmanager
def served(home: Path) -> Iterator[httpx.Client]:
    """A client of the release API, of one worker, in a process of its own."""
    # Not a socket handed over: uvicorn would take it for a Unix one and leave Nagle's delay on.
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with (
        subprocess.Popen([sys.executable, "-c", SERVE, str(home), str(port)]) as server,
        httpx.Client(base_url=url, timeout=60, trust_env=False) as client,
    ):
        try:
            while not answers(client):
                if server.poll() is not None:
                    raise RuntimeError("the release API did not start")
                time.sleep(0.05)
            yield client
        finally:
            server.terminate()


def answers(client: httpx.Client) -> bool:
    """Whether the API listens yet."""
    try:
        return client.get("/livez").is_success
    except httpx.ConnectError:
        return False


def timed(client: httpx.Client, path: str, *, requests: int) -> dict[str, float]:
    """Milliseconds of a request until its last byte, after two that do not count."""
    times = []
    for number in range(requests + 2):
        begun = time.perf_counter()
        client.get(path).raise_for_status()
        if number >= 2:
            times.append((time.perf_counter() - begun) * 1000)
    times.sort()
    return {
        "median_ms": round(statistics.median(times), 2),
        "p99_ms": round(times[min(int(len(times) * 0.99), len(times) - 1)], 2),
    }


if __name__ == "__main__":
    sys.exit(main())
