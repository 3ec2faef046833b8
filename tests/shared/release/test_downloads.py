import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shared.release import cache, transfer
from shared.release.cache import cache_folder, partial_folder
from shared.release.cached_release import cached
from shared.release.client import get, parse_address, parse_reference
from shared.release.errors import (
    DeniedError,
    GatedError,
    LocalError,
    NetworkError,
    RateLimitedError,
    TamperedFileError,
    WithdrawnError,
)
from shared.release.manifest import MANIFEST, MANIFEST_SIGNATURE, SUMS, VERSION, VERSION_SIGNATURE

Contents = Callable[..., dict[str, bytes]]
DEMO = parse_reference("ct-demo@v1")
PAIRS = "pairs.safetensors"
DOCUMENTS = (MANIFEST, MANIFEST_SIGNATURE, VERSION, VERSION_SIGNATURE, SUMS)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "RETRY_SECONDS", 0.001)


def parts() -> list[Path]:
    """What the cache holds of releases that are not whole."""
    folder = cache_folder() / "downloads"
    return list(folder.iterdir()) if folder.exists() else []


def asked(server: Any, name: str) -> list[str | None]:
    """The ranges of the requests for a file."""
    return [wanted for path, wanted in server.requests if path.endswith(f"/{name}")]


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_after_any_end_the_next_run_goes_on(
    server: Any, contents: Contents, tmp_path: Path, blow: signal.Signals
) -> None:
    server.publish("v1", contents())
    server.stall_after = 400_000
    (tmp_path / "out").mkdir()
    arguments = ["get", "ct-demo@v1", "--from", server.url, "--to", str(tmp_path / "out" / "x")]
    command = [sys.executable, "-c", "from shared.release.cli import main; main()", *arguments]
    # A shell's background job ignores SIGINT, and so would all that it starts.
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=heeding
    ) as process:
        deadline = time.monotonic() + 30
        while not any((part / PAIRS).stat().st_size == 400_000 for part in _begun()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(blow)
        began = time.monotonic()
        code = process.wait()
        said = process.stderr.read() if process.stderr else ""
    assert time.monotonic() - began < 5  # the server, which says nothing, is not waited for
    assert code == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[blow]
    assert "Traceback" not in said
    assert list((tmp_path / "out").iterdir()) == []
    server.stall_after = None
    server.requests.clear()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert asked(server, PAIRS) == ["bytes=400000-"]
    assert (tmp_path / "out" / "x" / PAIRS).read_bytes() == contents()[PAIRS]
    assert parts() == []


def _begun() -> list[Path]:
    return [part for part in parts() if (part / PAIRS).exists()]


def test_bytes_of_an_earlier_run_that_are_wrong_are_fetched_anew(
    server: Any, contents: Contents, tmp_path: Path
) -> None:
    server.publish("v1", contents())
    server.cut_after, server.ignores_range = 400_000, True
    with pytest.raises(Exception, match="kept ending early"):
        get(DEMO, url=server.url, to=tmp_path / "x")
    (part,) = parts()
    (part / PAIRS).write_bytes(b"\0" * 500_000)  # as a file system may, after a power cut
    server.cut_after, server.ignores_range = None, False
    server.requests.clear()
    get(DEMO, url=server.url, to=tmp_path / "x")
    assert asked(server, PAIRS) == ["bytes=500000-", None]
    assert (tmp_path / "x" / PAIRS).read_bytes() == contents()[PAIRS]


def test_what_is_refused_is_not_kept(server: Any, contents: Contents, tmp_path: Path) -> None:
    server.publish("v1", {**contents(), PAIRS: bytes(1_024_000)})
    with pytest.raises(TamperedFileError):
        get(DEMO, url=server.url, to=tmp_path / "x")
    assert parts() == []


def test_old_parts_are_removed_and_held_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with partial_folder("held", say=print) as held:
        for age, name in enumerate(["a", "b", "c", "d", "e"]):
            with partial_folder(name, say=print) as part:
                (part / "file").write_bytes(b"x")
            os.utime(part, (time.time() - 1000 - age, time.time() - 1000 - age))
        os.utime(held, (1, 1))
        with partial_folder("new", say=print):
            left = {path.name for path in parts()}
    assert left == {"held", "new", "a", "b", "e"}  # three others of the latest, and what is held
    monkeypatch.setattr(cache, "KEEP_SECONDS", 500.0)
    with partial_folder("new", say=print):
        assert {path.name for path in parts()} == {"new"}


def test_a_second_download_waits_for_the_first(tmp_path: Path) -> None:
    code = (
        "from shared.release.cache import partial_folder\n"
        "with partial_folder('d', say=lambda t: print(t, flush=True)) as f: print(f.exists())"
    )
    command = [sys.executable, "-c", code]
    with partial_folder("d", say=print) as part:
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert "waiting" in other.stdout.readline()
        part.rename(tmp_path / "done")  # as the first does at its end
    assert other.communicate()[0] == "True\n"
    assert (cache_folder() / "downloads" / "d").exists()


def test_a_full_disk_is_said_before_anything_is_asked(
    server: Any, contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.publish("v1", contents())
    real = os.statvfs(tmp_path)
    fields = {"f_bavail": 10, "f_frsize": 1000}
    small = type("Small", (), {**fields, "f_files": real.f_files})
    monkeypatch.setattr("shared.release.downloads.os.statvfs", lambda _: small)
    with pytest.raises(LocalError, match="10000 bytes free"):
        get(DEMO, url=server.url, to=tmp_path / "x")
    assert asked(server, PAIRS) == []


def test_another_file_system_gets_a_copy(
    server: Any, contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.publish("v1", contents())
    rename = Path.rename

    def across(self: Path, target: Path) -> Path:
        if "downloads" in self.parts:
            raise OSError(18, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", across)
    (tmp_path / "out" / ".x.partial").mkdir(parents=True)  # left by a kill
    get(DEMO, url=server.url, to=tmp_path / "out" / "x")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"]
    assert parts() == []


def test_a_server_that_asks_to_wait_is_heeded(
    server: Any,
) -> None:
    waits: list[float | None] = []

    class Clock(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return False

    said: list[str] = []
    address = f"{server.url}/file"
    busy = (429, {"Retry-After": "7"}, b'{"error": "slowly"}')
    with transfer.open_session(server.url, say=said.append) as opened:
        session = replace(opened, stop=Clock())
        server.answers["/file"] = [busy, busy, (200, {}, b"content")]
        content, _ = transfer.fetch_small(session, address, name="file")
        assert content == b"content"
        assert waits == [7.0, 7.0]
        assert said == ["the server asks to wait 7 s (file)"] * 2
        server.answers["/file"] = [(429, {"Retry-After": "9999"}, b"{}")]
        with pytest.raises(RateLimitedError, match="9999 s"):
            transfer.fetch_small(session, address, name="file")
        server.answers["/file"] = [(429, {"Retry-After": "50"}, b"{}")] * 3
        with pytest.raises(RateLimitedError, match="120 s in all"):
            transfer.fetch_small(session, address, name="file")
    assert waits == [7.0, 7.0, 50.0, 50.0]


@pytest.mark.parametrize(
    ("status", "headers", "kind", "says"),
    [
        (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "sign first"}, GatedError, "sign"),
        (401, {"X-Error-Code": "GatedRepo"}, GatedError, "refused"),
        (401, {}, DeniedError, "refused"),
        (403, {}, DeniedError, "refused"),
        (410, {"X-Error-Code": "RevisionWithdrawn"}, WithdrawnError, "refused"),
        (500, {}, NetworkError, "500: refused"),
    ],
)
def test_refusals_of_a_server(
    server: Any, status: int, headers: dict[str, str], kind: type[Exception], says: str
) -> None:
    body = json.dumps({"error": "refused \x1b[2J", "hint": ""}).encode()
    server.answers["/file"] = [(status, headers, body)]
    with transfer.open_session(server.url) as session, pytest.raises(kind, match=says) as caught:
        transfer.fetch_small(session, f"{server.url}/file", name="file")
    assert "\x1b" not in str(caught.value)


def test_a_token_crosses_no_network_in_the_clear(server: Any, contents: Contents) -> None:
    with pytest.raises(LocalError, match="https"):
        get(DEMO, url="http://aggregator.example.org", token="secret")
    server.publish("v1", contents())
    get(DEMO, url=server.url, to=cache_folder() / "x", token="secret")
    assert server.tokens == {"Bearer secret"}


def test_addresses_of_pages() -> None:
    url, reference = parse_address("https://host/datasets/fedstill/ct-demo/v3")
    assert (url, reference) == ("https://host:443", parse_reference("ct-demo@3"))
    url, reference = parse_address("http://host:81/below/datasets/ns/ct-demo/")
    assert (url, reference) == ("http://host:81/below", parse_reference("ns/ct-demo"))
    for text in ("https://host/ct-demo", "ftp://host/datasets/a/b", "https://h/datasets/a/b/v1/x"):
        with pytest.raises(ValueError, match=r"address|URL"):
            parse_address(text)


def test_files_come_four_at_a_time(
    server: Any, contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.publish("v1", contents())
    assert len(contents()) - len(DOCUMENTS) == 4
    together = threading.Barrier(4)  # passes once four stand before it

    def meet(*arguments: Any, **named: Any) -> Any:
        together.wait(timeout=20)
        return transfer.transfer(*arguments, **named)

    monkeypatch.setattr("shared.release.downloads.transfer", meet)
    get(DEMO, url=server.url, to=tmp_path / "x")
    assert (tmp_path / "x" / PAIRS).read_bytes() == contents()[PAIRS]


def test_a_release_by_address_is_fetched_once(
    server: Any, contents: Contents, caplog: pytest.LogCaptureFixture
) -> None:
    server.publish("main", contents(number=2))
    address = f"{server.url}/datasets/fedstill/ct-demo"
    folder = cached(address)
    assert "is trusted from now on" in caplog.text
    assert folder.name == "ct-demo-v2"
    assert folder.is_relative_to(cache_folder())
    server.requests.clear()
    assert cached(address) == cached(f"{address}/v2") == folder
    assert asked(server, PAIRS) == []
    (folder / PAIRS).write_bytes(b"changed")
    with pytest.raises(LocalError, match="is not this release"):
        cached(address)
