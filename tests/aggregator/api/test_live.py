"""The API under uvicorn, asked by httpx and by `distilled`: the whole way of a release."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from aggregator.release import publish
from shared.contract import RunContract
from shared.release.cli import app
from shared.release.keys import read_private_key

SERVE = """
import sys
from pathlib import Path
import uvicorn
from aggregator.api import create_app
uvicorn.run(create_app(Path(sys.argv[1])), fd=int(sys.argv[2]), log_level="warning", ws="none")
"""


@pytest.fixture
def url(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("FEDSTILL_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-c", SERVE, str(home), str(listener.fileno())]
        with subprocess.Popen(command, pass_fds=[listener.fileno()]) as server:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            server.terminate()


def test_published_fetched_verified(url: str, home: Path, tmp_path: Path) -> None:
    def distilled(*arguments: str | Path) -> tuple[int, str]:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        return done.exit_code, done.output

    listed = distilled("info", "--from", url)
    assert listed[0] == 0
    assert "fedstill/ct-demo  v2" in listed[1]
    code, said = distilled("get", "ct-demo", "--from", url, "--to", tmp_path / "v2")
    assert code == 0, said
    assert distilled("verify", tmp_path / "v2")[0] == 0
    pem = home / "keys" / "release.pub"
    assert distilled("verify", tmp_path / "v2", "--key", pem)[0] == 0
    assert distilled("get", "fedstill/ct-demo@v1", "--from", url, "--to", tmp_path / "v1")[0] == 0
    assert not (tmp_path / "v1" / "second.txt").exists()
    assert distilled("get", "ct-demo@v3", "--from", url, "--to", tmp_path / "v3")[0] == 22
    # What is published while the server runs is there at once.
    key = read_private_key(home / "keys" / "release.key")
    publish(home=home, contract=RunContract(name="ct-demo"), files={"new.txt": b"3"}, key=key)
    assert distilled("get", "ct-demo", "--from", url, "--to", tmp_path / "v3")[0] == 0
    assert (tmp_path / "v3" / "new.txt").read_bytes() == b"3"


def test_blobs_changed_on_the_server_do_not_get_through(
    url: str, home: Path, tmp_path: Path
) -> None:
    for blob in (home / "blobs").rglob("*"):
        if blob.is_file() and blob.stat().st_size == 512_000:
            content = bytearray(blob.read_bytes())
            content[7] ^= 1
            blob.write_bytes(content)
    done = CliRunner().invoke(
        app, ["get", "ct-demo", "--from", url, "--to", str(tmp_path / "here")]
    )
    assert done.exit_code == 10
    assert "pairs.safetensors" in done.stderr
    assert not list(tmp_path.glob("*here*"))


def test_head_ranges_and_connections_that_end_early(url: str) -> None:
    address = f"{url}/datasets/fedstill/ct-demo/resolve/main/pairs.safetensors"
    with httpx.Client() as client:
        head = client.head(address)
        assert head.headers["Content-Length"] == "512000"
        for start in range(0, 512_000, 100_000):
            span = {"Range": f"bytes={start}-{start + 9}"}
            assert len(client.get(address, headers=span).content) == 10
        with client.stream("GET", address) as response:
            next(response.iter_raw())  # and hang up
        assert client.get(f"{url}/livez").status_code == 200
