"""Where releases are kept in tests: SQLite and Debian's PostgreSQL, a folder and an S3 server."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

NUMBERS = count(1)


def postgresql_programs() -> Path | None:
    """The folder of ``initdb`` and ``postgres``, the newest where there are several."""
    folders = [one.parent for one in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(folders, key=lambda one: float(one.parent.name), default=None)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server that ends with the tests; skips where Debian's is missing."""
    programs = postgresql_programs()
    if programs is None:
        pytest.skip("needs Debian's package postgresql")
    # Not below pytest's own folder, which is root's alone: the server refuses to be root.
    folder = Path(tempfile.mkdtemp(prefix="fedstill-postgresql-"))
    be = ["setpriv", "--pdeathsig", "INT"]
    if os.getuid() == 0:
        shutil.chown(folder, user="nobody")
        be += ["--reuid", "nobody", "--clear-groups"]
    make = [programs / "initdb", "-D", folder / "data", "-U", "fedstill", "-A", "trust"]
    make += ["--no-sync", "-E", "UTF8", "--locale=C"]
    serve = [programs / "postgres", "-D", folder / "data", "-k", folder]
    serve += ["-c", "listen_addresses=", "-c", "fsync=off"]
    try:
        done = subprocess.run([*be, *make], cwd="/", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        with (folder / "log").open("w") as log:
            server = subprocess.Popen([*be, *serve], cwd="/", stdout=log, stderr=log)
        try:
            # What the server writes once it listens.
            while not (folder / ".s.PGSQL.5432.lock").exists() or not _answers(programs, folder):
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.02)
            yield f"postgresql://fedstill@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)
    finally:
        shutil.rmtree(folder)


def _answers(programs: Path, folder: Path) -> bool:
    ask = [programs / "pg_isready", "-q", "-h", folder]
    return subprocess.run(ask, cwd="/", check=False).returncode == 0


@pytest.fixture
def empty_postgresql(postgresql: str) -> str:
    """The URL of an empty database of the server's."""
    import psycopg

    name = f"test{next(NUMBERS)}"
    with psycopg.connect(postgresql, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return postgresql.replace("/postgres?", f"/{name}?")


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """An empty database of each kind: what ``Database`` and ``Catalog`` take."""
    if request.param == "sqlite":
        return tmp_path / "catalog.sqlite"
    url = request.getfixturevalue("empty_postgresql")
    assert isinstance(url, str)
    return url


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server on loopback that ends with the tests."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket; credentials and endpoint are in the environment, as for AWS."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    name = f"bucket{next(NUMBERS)}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}/releases"


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """An empty storage of each kind: what ``BlobStore`` takes."""
    if request.param == "folder":
        return tmp_path / "blobs"
    url = request.getfixturevalue("bucket")
    assert isinstance(url, str)
    return url
