"""Hugging Face's own packages, and mlcroissant, unmodified, against a live server.

Each runs in a process of its own with its own caches. Whatever it asks of another host than
loopback goes to a proxy that notes it and refuses; one test shows that the proxy would be told.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load, save_file

from aggregator.catalog import Catalog
from aggregator.release import publish_run
from shared.contract import RunContract
from shared.release.keys import write_key_pair

CONTRACT = RunContract(name="ct-demo", task={"size_px": 32}, anchor={"crop_px": 32})
RESULT = {"rounds": 6, "sites": {"a": {}, "b": {}}, "provenance": {"kind": "procedural phantom"}}
REPO = "fedstill/ct-demo"
HALF_A_LEVEL = 0.5001 / 65535
SERVE = """
import sys
from pathlib import Path
import uvicorn
from aggregator.api import create_app
uvicorn.run(create_app(Path(sys.argv[1])), fd=int(sys.argv[2]), log_level="warning", ws="none")
"""


@dataclass
class Refusing:
    """A proxy that lets nothing through and notes what was asked."""

    listener: socket.socket
    asked: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(200).decode("latin-1").partition("\r\n")[0])
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "keys").mkdir()
    write_key_pair(folder / "keys" / "release.key", folder / "keys" / "release.pub")
    (folder / "aggregator.toml").write_text("api_port = 8123\n")
    for seed in (0, 1):
        random = np.random.default_rng(seed)
        hq = random.uniform(0, 1, (3 + seed, 1, 32, 32)).astype(np.float32)
        lq = (hq + random.normal(0, 0.1, hq.shape)).astype(np.float32)
        save_file({"lq": lq, "hq": hq}, folder / "pairs.safetensors")
        pairs = folder / "pairs.safetensors"
        publish_run(home=folder, contract=CONTRACT, pairs=pairs, result=RESULT, utility=None)
    return folder


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-c", SERVE, str(home), str(listener.fileno())]
        with subprocess.Popen(command, pass_fds=[listener.fileno()]) as server:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            server.terminate()


@pytest.fixture
def proxy() -> Iterator[Refusing]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        refusing = Refusing(listener)
        thread = threading.Thread(target=refusing.serve, daemon=True)
        thread.start()
        yield refusing
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@dataclass(frozen=True)
class Researcher:
    """Somebody with Hugging Face's packages and nothing of ours."""

    folder: Path
    url: str
    proxy: Refusing

    def run(self, *command: str) -> str:
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), self.proxy.url)
        environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.folder),
            "HF_HOME": str(self.folder / "hf"),
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # else `datasets` tells a bucket of its makers
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1",
            **proxies,
            **{name.lower(): value for name, value in proxies.items()},
            "no_proxy": "127.0.0.1",
        }
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def python(self, script: str) -> Any:
        """What the last line that ``script`` prints says, as JSON."""
        return json.loads(self.run(sys.executable, "-c", script).splitlines()[-1])


@pytest.fixture
def researcher(tmp_path: Path, url: str, proxy: Refusing) -> Iterator[Researcher]:
    yield Researcher(folder=tmp_path, url=url, proxy=proxy)
    assert proxy.asked == []


def version(home: Path, revision: str) -> tuple[str, dict[str, str]]:
    """The commit and the SHA-256 by file of a version."""
    catalog = Catalog(home / "catalog.sqlite")
    found = catalog.find("fedstill", "ct-demo", revision)
    catalog.close()
    assert found is not None
    return found.commit, {file.path: file.sha256 for file in found.files}


def test_the_proxy_would_be_asked(tmp_path: Path, proxy: Refusing) -> None:
    somebody = Researcher(folder=tmp_path, url="http://elsewhere.invalid", proxy=proxy)
    with pytest.raises(AssertionError):
        somebody.python("from huggingface_hub import HfApi; HfApi().list_repo_refs('a/b')")
    assert any("elsewhere.invalid" in one for one in proxy.asked)


def test_huggingface_hub(researcher: Researcher, home: Path) -> None:
    found = researcher.python(
        f"""
import hashlib, json
from pathlib import Path
from huggingface_hub import DatasetCard, HfApi, HfFileSystem, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.errors import RevisionNotFoundError
repo = {REPO!r}
def sums(folder):
    return {{p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(folder).iterdir()}}
def refused(error, call, *given, **named):
    try:
        call(*given, **named)
    except error:
        return True
    return False
api, files = HfApi(), HfFileSystem()
one = hf_hub_download(repo, "pairs.safetensors", repo_type="dataset", revision="v1")
refs = api.list_repo_refs(repo, repo_type="dataset")
with files.open(f"datasets/{{repo}}@v1/MANIFEST.json", "rb") as file:
    file.seek(10)
    part = file.read(20).decode()
card = DatasetCard.load(Path(snapshot_download(repo, repo_type="dataset")) / "README.md").data
print(json.dumps({{
    "one": hashlib.sha256(Path(one).read_bytes()).hexdigest(),
    "v1": sums(snapshot_download(repo, repo_type="dataset", revision="v1")),
    "main": sums(snapshot_download(repo, repo_type="dataset")),
    "refs": {{ref.name: ref.target_commit for ref in refs.branches + refs.tags}},
    "ls": sorted(files.ls(f"datasets/{{repo}}@v1", detail=False)),
    "part": part,
    "tree": sorted(x.path for x in api.list_repo_tree(repo, repo_type="dataset", recursive=True)),
    "paths": [[x.path, x.lfs.sha256] for x in api.get_paths_info(
        repo, ["README.md", "absent", ""], repo_type="dataset", revision="v1")],
    "sha": api.dataset_info(repo, revision="v1").sha,
    "card": [card.license, card.task_categories, card.pretty_name, card.size_categories],
    "absent": [
        refused(RepositoryNotFoundError, api.dataset_info, "fedstill/absent"),
        refused(RevisionNotFoundError, api.dataset_info, repo, revision="v9"),
        refused(EntryNotFoundError, hf_hub_download, repo, "absent", repo_type="dataset"),
        files.exists(f"datasets/{{repo}}@v1/folder/file"),
        refused(EntryNotFoundError, lambda: list(
            api.list_repo_tree(repo, "folder", repo_type="dataset"))),
    ],
}}))
"""
    )
    first, second = version(home, "v1"), version(home, "v2")
    assert found["one"] == first[1]["pairs.safetensors"]
    assert (found["v1"], found["main"]) == (first[1], second[1])
    assert found["refs"] == {"main": second[0], "v1": first[0], "v2": second[0]}
    assert [name.rpartition("/")[2] for name in found["ls"]] == sorted(first[1])
    assert len(found["part"]) == 20
    assert found["tree"] == sorted(second[1])
    assert found["paths"] == [["README.md", first[1]["README.md"]]]
    assert found["sha"] == first[0]
    assert found["card"] == ["cc-by-4.0", ["image-to-image"], "ct-demo", ["n<1K"]]
    assert found["absent"] == [True, True, True, False, True]


def test_the_command_hf(researcher: Researcher, home: Path) -> None:
    what = [REPO, "--repo-type", "dataset", "--revision", "v1"]
    researcher.run("hf", "download", *what)
    said = researcher.run("hf", "cache", "verify", *what)
    _, files = version(home, "v1")
    assert str(len(files)) in said
    assert "erified" in said


def test_datasets(researcher: Researcher, url: str) -> None:
    found = researcher.python(
        f"""
import json
import numpy as np
from datasets import load_dataset
whole = load_dataset({REPO!r}, revision="v1", split="train")
stream = load_dataset({REPO!r}, revision="v1", split="train", streaming=True)
def values(row):
    return {{name: (np.asarray(row[name]) / 65535).tolist() for name in ("lq", "hq")}}
print(json.dumps({{
    "whole": [values(row) for row in whole],
    "stream": [values(row) for row in stream],
    "columns": whole.column_names,
}}))
"""
    )
    exact = load(httpx.get(f"{url}/datasets/{REPO}/resolve/v1/pairs.safetensors").content)
    for rows in (found["whole"], found["stream"]):
        assert len(rows) == 3
        for name in ("lq", "hq"):
            stored = np.array([row[name] for row in rows])
            wanted = np.clip(exact[name][:, 0], 0, 1)
            np.testing.assert_allclose(stored, wanted, atol=HALF_A_LEVEL)
    columns = ["id", "task", "lq", "hq", "window_low", "window_high", "window_unit"]
    assert found["columns"] == columns


READ = """
import json
import mlcroissant, numpy as np
place = {place!r}
data = mlcroissant.Dataset(jsonld=place)
rows = [
    {{name: (np.asarray(row["pairs/" + name]) / 65535).tolist() for name in ("lq", "hq")}}
    for row in data.records("pairs")
]
print(json.dumps({{"rows": rows, "version": str(data.metadata.version)}}))
"""


def test_mlcroissant(researcher: Researcher, url: str) -> None:
    address = f"{url}/api/datasets/{REPO}/croissant?revision=v1"
    found = researcher.python(READ.format(place=address))
    exact = load(httpx.get(f"{url}/datasets/{REPO}/resolve/v1/pairs.safetensors").content)
    assert len(found["rows"]) == 3
    assert found["version"] == "1.0.0"
    for name in ("lq", "hq"):
        stored = np.array([row[name] for row in found["rows"]])
        np.testing.assert_allclose(stored, np.clip(exact[name][:, 0], 0, 1), atol=HALF_A_LEVEL)


def test_mlcroissant_reads_the_file_of_a_release(researcher: Researcher, url: str) -> None:
    for name in ("croissant.json", "pairs.parquet"):
        content = httpx.get(f"{url}/datasets/{REPO}/resolve/v1/{name}").content
        (researcher.folder / name).write_bytes(content)
    assert len(researcher.python(READ.format(place="croissant.json"))["rows"]) == 3


def test_mlcroissant_refuses_a_checksum_that_lies(researcher: Researcher, url: str) -> None:
    document = httpx.get(f"{url}/api/datasets/{REPO}/croissant?revision=v1").json()
    for one in document["distribution"]:
        one["sha256"] = "0" * 64
    (researcher.folder / "lying.json").write_text(json.dumps(document))
    with pytest.raises(AssertionError, match="is not identical with the reference"):
        researcher.python(READ.format(place="lying.json"))
