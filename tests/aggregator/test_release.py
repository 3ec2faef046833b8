import hashlib
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load, save_file

from aggregator import release
from aggregator.catalog import Catalog
from aggregator.contact_sheet import contact_sheet
from aggregator.release import PublishError, build_files, publish_run, read_pairs
from aggregator.store import BlobStore
from shared.contract import RunContract
from shared.release.keys import read_public_key, write_key_pair
from shared.release.manifest import DOCUMENTS, verify_folder
from shared.release.provenance import read_predicate

CONTRACT = RunContract(name="ct-demo", task={"size_px": 32}, anchor={"crop_px": 32})
RESULT = {
    "contract_digest": CONTRACT.digest(),
    "rounds": 6,
    "sites": {"hospital-secret-name": {"releases": 6, "bytes_up": 1}, "clinic-b": {}},
    "seconds": {"anchor": 12.5},
    "peak_rss_mib": 812.25,
    "provenance": {"kind": "procedural phantom", "anatomy": "chest", "seed": 7},
}
ROW = {"psnr": {"mean": 31.25, "std": 0.125, "n": 3}, "ssim": {"mean": 0.75, "std": 0.5, "n": 3}}
UTILITY = {
    "rows": {"full": ROW, "input": ROW, "distilled": ROW, "prior": ROW},
    "best_null": "prior",
    "gain_over_best_null": -0.5,
    "share_recovered": None,
    "secret": "/data/hospital",
}


def images(seed: int = 0, count: int = 3) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    hq = random.uniform(0, 1, (count, 1, 32, 32)).astype(np.float32)
    return (hq + random.normal(0, 0.1, hq.shape)).astype(np.float32), hq


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    (folder / "keys").mkdir(parents=True)
    write_key_pair(folder / "keys" / "release.key", folder / "keys" / "release.pub")
    (folder / "aggregator.toml").write_text("api_port = 8123\n")
    return folder


def run(home: Path, *, seed: int = 0, utility: dict[str, Any] | None = None) -> release.Release:
    lq, hq = images(seed)
    save_file({"lq": lq, "hq": hq}, home / "pairs.safetensors")
    return publish_run(
        home=home,
        contract=CONTRACT,
        pairs=home / "pairs.safetensors",
        result=RESULT,
        utility=utility,
    )


def folder_of(home: Path, number: int, to: Path) -> Path:
    """The files of a version, as a download would leave them."""
    catalog = Catalog(home / "catalog.sqlite")
    version = catalog.find("fedstill", "ct-demo", f"v{number}")
    catalog.close()
    assert version is not None
    to.mkdir()
    for file in version.files:
        content = BlobStore(home / "blobs").path(file.sha256).read_bytes()
        (to / file.path).write_bytes(content)
    return to


def test_a_published_run_verifies(home: Path, tmp_path: Path) -> None:
    published = run(home)
    assert (published.name, published.version) == ("ct-demo", 1)
    assert published.url == "http://127.0.0.1:8123/api/datasets/fedstill/ct-demo/revision/v1"
    folder = folder_of(home, 1, tmp_path / "v1")
    verified = verify_folder(folder, keys=[read_public_key(home / "keys" / "release.pub")])
    assert verified.digest == published.digest
    assert hashlib.sha256((folder / "MANIFEST.json").read_bytes()).hexdigest() == verified.digest
    names = {"README.md", "provenance.json", "pairs.safetensors", "pairs.parquet"}
    names |= {"privacy.json", "PRIVACY.md", "croissant.json"}
    assert {path.name for path in folder.iterdir()} == {*names, "contact-sheet.png", *DOCUMENTS}


def test_the_same_run_again_is_the_same_version(home: Path) -> None:
    first = run(home)
    assert run(home) == first
    second = run(home, seed=1)
    assert (second.version, second.digest == first.digest) == (2, False)
    assert run(home) == first


def test_a_publication_that_fails_half_way_leaves_no_version(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = BlobStore.put
    count = 0

    def break_at_the_fifth(store: BlobStore, content: bytes) -> str:
        nonlocal count
        count += 1
        if count == 5:
            raise OSError(28, "No space left on device")
        return put(store, content)

    monkeypatch.setattr(BlobStore, "put", break_at_the_fifth)
    with pytest.raises(OSError, match="No space"):
        run(home)
    catalog = Catalog(home / "catalog.sqlite")
    assert catalog.datasets() == (0, [])
    catalog.close()
    assert run(home).version == 1


PUBLISH = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_release as t
from shared.release.keys import read_private_key
home = Path(sys.argv[2])
key = read_private_key(home / "keys" / "release.key")
for number in range(10_000):
    files = {"data.bin": b"%d" % number + bytes(50_000)}
    version = t.release.publish(home=home, contract=t.CONTRACT, files=files, key=key)
    print(version.digest, flush=True)
"""


def test_a_version_is_absent_or_complete_after_a_kill(home: Path, tmp_path: Path) -> None:
    # At no step in particular: test_killed_publishers.py goes through them.
    command = [sys.executable, "-c", PUBLISH, str(Path(__file__).parent), str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as publisher:
        assert publisher.stdout is not None
        acknowledged = [publisher.stdout.readline().strip() for _ in range(3)]
        time.sleep(0.007)
        publisher.kill()
    catalog = Catalog(home / "catalog.sqlite")
    versions = catalog.versions("fedstill", "ct-demo")
    catalog.close()
    assert [version.number for version in versions] == list(range(len(versions), 0, -1))
    assert set(acknowledged) <= {version.digest for version in versions}
    key = read_public_key(home / "keys" / "release.pub")
    for version in versions:
        folder = folder_of(home, version.number, tmp_path / f"v{version.number}")
        assert verify_folder(folder, keys=[key]).digest == version.digest
    assert run(home).version == len(versions) + 1


BUILD = """
import hashlib, json, sys
sys.path.insert(0, sys.argv[1])
import test_release as t
files = t.build_files(contract=t.CONTRACT, lq=t.images()[0], hq=t.images()[1], result=t.RESULT,
                      utility=t.UTILITY)
print(json.dumps({name: hashlib.sha256(content).hexdigest() for name, content in files.items()}))
"""


def test_equal_runs_give_equal_bytes_in_any_process(tmp_path: Path) -> None:
    def digests(seed: str, zone: str) -> dict[str, str]:
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TZ": zone}
        done = subprocess.run(
            [sys.executable, "-c", BUILD, str(Path(__file__).parent)],
            env=environment,
            capture_output=True,
            check=True,
        )
        return dict(json.loads(done.stdout))

    here = build_files(
        contract=CONTRACT, lq=images()[0], hq=images()[1], result=RESULT, utility=UTILITY
    )
    expected = {name: hashlib.sha256(content).hexdigest() for name, content in here.items()}
    assert digests("1", "UTC") == digests("2", "Asia/Tokyo") == expected


def test_times_memory_and_site_names_are_not_published() -> None:
    lq, hq = images()
    built = build_files(contract=CONTRACT, lq=lq, hq=hq, result=RESULT, utility=UTILITY)
    slower = {**RESULT, "seconds": {"anchor": 99.0}, "peak_rss_mib": 1.0}
    assert built == build_files(contract=CONTRACT, lq=lq, hq=hq, result=slower, utility=UTILITY)
    everything = b"".join(built.values())
    for secret in (b"hospital-secret-name", b"clinic-b", b"812.25", b"/data/hospital"):
        assert secret not in everything
    assert b"procedural phantom" in everything  # the control: what is meant to be there is found


def test_safetensors_hold_the_exact_pairs(tmp_path: Path) -> None:
    lq, hq = images()
    content = build_files(contract=CONTRACT, lq=lq, hq=hq, result=RESULT, utility=None)[
        "pairs.safetensors"
    ]
    tensors = load(content)
    np.testing.assert_array_equal(tensors["lq"], lq)
    np.testing.assert_array_equal(tensors["hq"], hq)
    assert tensors["task"].tolist() == [0, 0, 0]
    (tmp_path / "pairs.safetensors").write_bytes(content)
    with safe_open(tmp_path / "pairs.safetensors", framework="np") as file:
        assert json.loads(file.metadata()["fedstill"])["contract_digest"] == CONTRACT.digest()


def test_parquet_holds_sixteen_bit_pictures() -> None:
    lq, hq = images()
    files = build_files(contract=CONTRACT, lq=lq, hq=hq, result=RESULT, utility=None)
    table = pq.read_table(io.BytesIO(files["pairs.parquet"]))
    assert table.column("id").to_pylist() == ["pair-0000", "pair-0001", "pair-0002"]
    row = table.to_pylist()[1]
    assert (row["window_low"], row["window_high"], row["window_unit"]) == (-1000.0, 1000.0, "HU")
    assert row["task"] == "ct-denoise"
    for name, exact in (("lq", lq[1, 0]), ("hq", hq[1, 0])):
        picture = Image.open(io.BytesIO(row[name]["bytes"]))
        assert picture.mode == "I;16"
        levels = np.asarray(picture).astype(np.float64)
        np.testing.assert_allclose(levels / 65535, np.clip(exact, 0, 1), atol=0.5001 / 65535)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["lq"] == {"_type": "Image"}
    assert set(features) == set(table.column_names)


def test_the_card_states_what_was_done() -> None:
    lq, hq = images()
    files = build_files(contract=CONTRACT, lq=lq, hq=hq, result=RESULT, utility=UTILITY)
    card = files["README.md"].decode()
    front, text = re.match(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL).groups()  # type: ignore[union-attr]
    assert "license: cc-by-4.0" in front
    assert "path: pairs.parquet" in front
    assert '{"dp": null}' in text
    assert "beyond that no privacy is claimed" in text
    assert f"{CONTRACT.task.photons:g} photons" in text
    assert "arxiv.org/abs/2511.13106" in text
    assert "2 sites" in text
    assert "31.25 ± 0.12" in text
    assert text.index("untouched |") < text.index("prior only") < text.index("this release**")
    assert "worth no more than the best control" in text
    statement = json.loads(files["provenance.json"])
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert {one["name"]: one["digest"]["sha256"] for one in statement["subject"]} == {
        name: hashlib.sha256(files[name]).hexdigest()
        for name in ("pairs.safetensors", "pairs.parquet", "contact-sheet.png")
    }
    facts = statement["predicate"]
    assert facts == read_predicate(files["provenance.json"])
    assert (facts["seeds"], facts["rounds"]) == ({"run": CONTRACT.seed}, 6)
    assert facts["contract_digest"] == CONTRACT.digest()
    assert facts["privacy"]["dp"] is None
    assert facts["contract"]["name"] == "ct-demo"
    assert facts["sites"] == 2


def test_a_card_without_figures_claims_none() -> None:
    lq, hq = images()
    files = build_files(contract=CONTRACT, lq=lq, hq=hq, result=RESULT, utility=None)
    assert b"no utility is claimed" in files["README.md"]
    assert read_predicate(files["provenance.json"])["utility"] is None


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lq": np.zeros((2, 1, 32, 32), np.float32)}, "lq and hq"),
        ({"lq": np.zeros((2, 1, 32, 32)), "hq": np.zeros((2, 1, 32, 32))}, "float64"),
        ({"lq": np.zeros((2, 1, 16, 16), np.float32)} | {"hq": images()[1]}, "lq is"),
        ({"lq": images()[0], "hq": images(count=2)[1]}, "differ"),
        ({"lq": np.full((1, 1, 32, 32), np.nan, np.float32), "hq": images()[1]}, "finite"),
        ({"lq": np.zeros((0, 1, 32, 32), np.float32), "hq": images()[1]}, "lq is"),
    ],
)
def test_pairs_that_are_not_fit_to_publish(
    tmp_path: Path, tensors: dict[str, Any], message: str
) -> None:
    save_file(tensors, tmp_path / "pairs.safetensors")
    with pytest.raises(PublishError, match=message):
        read_pairs(tmp_path / "pairs.safetensors", contract=CONTRACT)


def test_files_that_are_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="cannot be read"):
        read_pairs(tmp_path / "absent", contract=CONTRACT)
    (tmp_path / "bad").write_bytes(b"x" * 100)
    with pytest.raises(PublishError, match="cannot be read"):
        read_pairs(tmp_path / "bad", contract=CONTRACT)


@pytest.mark.parametrize(
    ("result", "utility", "message"),
    [
        ({"rounds": 6}, None, "lacks 'sites'"),
        ({**RESULT, "provenance": {"x": float("nan")}}, None, "JSON"),
        (RESULT, {"rows": {"input": {"psnr": ROW["psnr"]}}}, "utility.json: rows.input.ssim"),
    ],
)
def test_results_that_are_not_fit_to_publish(
    result: dict[str, Any], utility: dict[str, Any] | None, message: str
) -> None:
    lq, hq = images()
    with pytest.raises(PublishError, match=message):
        build_files(contract=CONTRACT, lq=lq, hq=hq, result=result, utility=utility)


@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        ({"format": "x"}, "attacks.json: .*format"),
        (
            {"format": "fedstill-attacks/1", "foundation": "0" * 64, "quick": True, "attacks": {}},
            "attacks.json: is of another contract",
        ),
    ],
)
def test_attacks_that_are_not_of_this_run_are_not_published(
    attacks: dict[str, Any], message: str
) -> None:
    lq, hq = images()
    with pytest.raises(PublishError, match=message):
        build_files(contract=CONTRACT, lq=lq, hq=hq, result=RESULT, utility=None, attacks=attacks)


@pytest.mark.parametrize("count", [1, 2, 8, 30])
def test_contact_sheets_are_of_the_same_bytes_and_say_nothing_of_where(count: int) -> None:
    lq, hq = images(count=count)
    first, second = (
        contact_sheet(title="t", lq=lq, hq=hq, low=-1000, high=1000, unit="HU") for _ in range(2)
    )
    assert first == second
    picture = Image.open(io.BytesIO(first))
    assert picture.mode == "L"
    assert picture.info == {}
    chunks = set(re.findall(rb"(?:IHDR|IDAT|IEND|tEXt|iTXt|zTXt|tIME|pHYs|eXIf)", first))
    assert chunks <= {b"IHDR", b"IDAT", b"IEND"}


def test_equal_pairs_have_a_sheet_too() -> None:
    hq = np.full((1, 1, 32, 32), 0.5, np.float32)
    sheet = contact_sheet(title="t", lq=hq, hq=hq, low=0, high=1, unit="")
    assert sheet[:4] == b"\x89PNG"


def test_the_pairs_of_several_tasks_name_their_task() -> None:
    contract = RunContract(
        name="mr-demo",
        task={
            "name": "multi",
            "parts": [{"name": "mr-denoise", "size_px": 32}, {"name": "mr-sr", "size_px": 32}],
        },
    )
    lq, hq = images(count=6)
    files = build_files(contract=contract, lq=lq, hq=hq, result=RESULT, utility=None)
    assert load(files["pairs.safetensors"])["task"].tolist() == [0, 0, 0, 1, 1, 1]
    table = pq.read_table(io.BytesIO(files["pairs.parquet"]))
    assert table.column("task").to_pylist() == ["mr-denoise"] * 3 + ["mr-sr"] * 3
    row = table.to_pylist()[5]
    assert (row["window_low"], row["window_high"]) == (0.0, 1000.0)
    assert row["window_unit"] == "permille of the 99.5th percentile"
    assert Image.open(io.BytesIO(files["contact-sheet.png"])).mode == "L"


def test_every_task_has_as_many_pairs(tmp_path: Path) -> None:
    parts = [{"name": "ct-denoise", "size_px": 32}, {"name": "ct-sr", "size_px": 32}]
    contract = RunContract(name="ct-demo", task={"name": "multi", "parts": parts})
    lq, hq = images(count=3)
    save_file({"lq": lq, "hq": hq}, tmp_path / "pairs.safetensors")
    with pytest.raises(PublishError, match="holds 3 pairs, not as many for each of 2"):
        read_pairs(tmp_path / "pairs.safetensors", contract=contract)


def test_a_sheet_without_a_unit_shows_window_units() -> None:
    lq, hq = images(count=2)
    plain = contact_sheet(title="t", lq=lq, hq=hq, low=0, high=1, unit="")
    named = contact_sheet(title="t", lq=lq, hq=hq, low=0, high=1, unit="", tasks=["a", "b"])
    assert plain != named != contact_sheet(title="t", lq=lq, hq=hq, low=-1e3, high=1e3, unit="HU")
