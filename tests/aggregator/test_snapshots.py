from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from aggregator import federation, snapshots
from aggregator.federation import federate
from aggregator.snapshots import SnapshotError, chosen, read_snapshot, snapshot_rounds
from shared.contract import RunContract
from tests.aggregator.test_federation import CONTRACT, SITES, Hospitals


def whole(run: Path) -> dict[str, bytes]:
    files = sorted((run / "snapshots").iterdir())
    return {file.name: file.read_bytes() for file in files}


def test_a_run_ends_the_same_with_and_without_snapshots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federate(contract=CONTRACT, sites=SITES, exchange=Hospitals(), run=tmp_path / "with")
    monkeypatch.setattr(federation, "keep_snapshot", lambda run, distiller: None)
    federate(contract=CONTRACT, sites=SITES, exchange=Hospitals(), run=tmp_path / "without")
    ends = [(tmp_path / name / "pairs.safetensors").read_bytes() for name in ("with", "without")]
    assert ends[0] == ends[1]
    assert snapshot_rounds(tmp_path / "with") == [0, 1, 2, 3]
    assert snapshot_rounds(tmp_path / "without") == []


def test_the_last_snapshot_is_the_pairs_and_each_round_differs(tmp_path: Path) -> None:
    federate(contract=CONTRACT, sites=SITES, exchange=Hospitals(), run=tmp_path)
    pairs = load_file(tmp_path / "pairs.safetensors")
    last = read_snapshot(tmp_path, 3)
    for name in ("lq", "hq"):
        np.testing.assert_array_equal(last[name], pairs[name].numpy().astype(np.float16))
    assert last["number"].tolist() == [0, 1]
    seen = [read_snapshot(tmp_path, round)["hq"].tobytes() for round in range(4)]
    assert len(set(seen)) == 4


def test_a_run_that_is_killed_after_a_snapshot_finds_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federate(contract=CONTRACT, sites=SITES, exchange=Hospitals(), run=tmp_path / "straight")
    kept = federation._checkpoint

    def killed(file: Path, contract: RunContract, distiller: object, ledger: object) -> None:
        if distiller.round == 2:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        kept(file, contract, distiller, ledger)  # type: ignore[arg-type]

    monkeypatch.setattr(federation, "_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        federate(contract=CONTRACT, sites=SITES, exchange=Hospitals(), run=tmp_path / "killed")
    assert snapshot_rounds(tmp_path / "killed") == [0, 1, 2]
    before = {name: file.stat().st_mtime_ns for name, file in files(tmp_path / "killed").items()}
    monkeypatch.setattr(federation, "_checkpoint", kept)
    federate(contract=CONTRACT, sites=SITES, exchange=Hospitals(), run=tmp_path / "killed")
    after = {name: file.stat().st_mtime_ns for name, file in files(tmp_path / "killed").items()}
    assert {name: after[name] for name in before} == before, "once written never changed"
    assert whole(tmp_path / "killed") == whole(tmp_path / "straight")


def files(run: Path) -> dict[str, Path]:
    return {file.name: file for file in (run / "snapshots").iterdir()}


@pytest.mark.parametrize(
    ("size_px", "images", "count"), [(128, 8, 8), (128, 1000, 8), (256, 4, 4), (512, 64, 2)]
)
def test_a_snapshot_is_bounded(size_px: int, images: int, count: int) -> None:
    task = {"name": "ct-sr", "size_px": size_px}
    contract = RunContract.model_validate({"name": "ct", "task": task, "images": images})
    numbers = chosen(contract)
    assert len(numbers) == count
    assert (numbers[0], numbers[-1]) == (0, images - 1)
    assert 4 * size_px**2 * count <= snapshots.MOST_BYTES


def test_what_is_absent_or_damaged_is_said_without_a_path(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="no pairs were kept after round 7"):
        read_snapshot(tmp_path, 7)
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "0007.safetensors").write_bytes(b"half")
    with pytest.raises(SnapshotError, match="damaged") as found:
        read_snapshot(tmp_path, 7)
    assert str(tmp_path) not in str(found.value)
