from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from aggregator.simulate import in_process, open_hospitals, pooled, split_patients
from shared.contract import Anchor, Probes, RunContract
from shared.messages import SummaryHeader, decode, encode, probe_batch
from shared.readers import ReaderError
from shared.tasks.settings import CtDenoise
from shared.trajectory import start
from site_agent.intake.slices import PatientSlices

CONTRACT = RunContract(
    name="ct",
    task=CtDenoise(size_px=32, angles=60, bins=48, pixel_mm=9.0),
    images=2,
    min_patients=2,
    probes=Probes(requests=1, depths=(1,)),
    anchor=Anchor(rounds=0, crop_px=16),
)
WriteHospitals = Callable[..., Path]


@pytest.fixture
def write_hospitals(tmp_path: Path) -> WriteHospitals:
    """A folder of hospitals with so many patients each, two slices a patient."""

    def write(**patients: int) -> Path:
        random = np.random.default_rng(0)
        for hospital, count in patients.items():
            for number in range(count):
                folder = tmp_path / "data" / f"hospital-{hospital}" / f"p{number}"
                folder.mkdir(parents=True)
                voxels = random.integers(-1000, 500, size=(2, 32, 32), dtype=np.int16)
                volume = SimpleITK.GetImageFromArray(voxels)
                volume.SetSpacing((2.0, 2.0, 3.0))
                SimpleITK.WriteImage(volume, str(folder / "ct.nii.gz"))
        return tmp_path / "data"

    return write


def patients(count: int) -> list[PatientSlices]:
    return [PatientSlices(f"{number:02d}", []) for number in reversed(range(count))]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 15])
def test_the_splits_keep_different_patients_apart(count: int) -> None:
    everyone = {one.pseudonym for one in patients(count)}
    held = {}
    for split in ("choosing", "reporting"):
        kept, apart = split_patients(patients(count), split)
        held[split] = {one.pseudonym for one in apart}
        assert {one.pseudonym for one in kept} == everyone - held[split]
    assert held["choosing"] == {f"{n:02d}" for n in range(0, count, 3)}
    assert held["reporting"] == {f"{n:02d}" for n in range(1, count, 3)}
    assert held["choosing"].isdisjoint(held["reporting"])


def test_with_a_holdout_of_its_own_everyone_is_trained_on() -> None:
    kept, apart = split_patients(patients(4), None)
    assert (len(kept), apart) == (4, [])


@pytest.mark.parametrize(
    ("counts", "least", "pools"),
    [
        ({"a": 5, "b": 6}, 5, [("a",), ("b",)]),
        ({"a": 1, "b": 1, "c": 1}, 2, [("a", "b", "c")]),
        ({"a": 1, "b": 1, "c": 1, "d": 1}, 2, [("a", "b"), ("c", "d")]),
        ({"a": 3, "b": 0, "c": 1}, 3, [("a", "c")]),
        ({"a": 1, "b": 1}, 3, []),
    ],
)
def test_small_hospitals_are_pooled(
    counts: dict[str, int], least: int, pools: list[tuple[str, ...]]
) -> None:
    assert pooled(counts, least=least) == pools


def test_hospitals_train_on_those_who_are_not_judged(
    write_hospitals: WriteHospitals, tmp_path: Path
) -> None:
    data = write_hospitals(a=6, b=3)
    seen = {}
    for split in ("choosing", "reporting"):
        hospitals, apart = open_hospitals(
            data, contract=CONTRACT, homes=tmp_path / split, split=split, sequence=None
        )
        assert [one.name for one in hospitals] == ["hospital-a", "hospital-b"]
        trained = [one for site in hospitals for one in site.training_images(CONTRACT.task)]
        assert len(trained) == 6
        assert len(apart) == 3
        assert all(one.shape == (2, 1, 32, 32) for one in [*trained, *apart])
        judged = {one.tobytes() for one in apart}
        assert judged.isdisjoint({one.tobytes() for one in trained})
        seen[split] = judged
    assert seen["choosing"].isdisjoint(seen["reporting"])


def test_too_few_patients_are_named(write_hospitals: WriteHospitals, tmp_path: Path) -> None:
    contract = CONTRACT.model_copy(update={"min_patients": 5})
    with pytest.raises(ReaderError, match=r"min_patients 5 \(hospital-a 1, hospital-b 2\)"):
        open_hospitals(
            write_hospitals(a=1, b=2),
            contract=contract,
            homes=tmp_path / "homes",
            split=None,
            sequence=None,
        )
    with pytest.raises(ReaderError, match="no folder named hospital"):
        open_hospitals(
            tmp_path / "homes", contract=contract, homes=tmp_path, split=None, sequence=None
        )


def test_pooled_hospitals_answer_as_one_site(
    write_hospitals: WriteHospitals, tmp_path: Path
) -> None:
    hospitals, _ = open_hospitals(
        write_hospitals(a=1, b=1),
        contract=CONTRACT,
        homes=tmp_path / "homes",
        split=None,
        sequence=None,
    )
    assert [(one.name, one.folders) for one in hospitals] == [
        ("hospital-a", ("hospital-a", "hospital-b"))
    ]
    weights = start(CONTRACT, kind="gradients", network="student", round=1)[None].numpy()
    request = probe_batch(
        contract=CONTRACT, round=1, kind="gradients", network="student", weights=weights
    )
    ask = in_process(hospitals, modality="CT", outboxes=tmp_path / "outbox")
    answers = ask(encode(request), 1, ["hospital-a"])
    answered = decode(answers["hospital-a"])
    assert isinstance(answered.header, SummaryHeader)
    assert answered.arrays["values"].shape == weights.shape
    assert (tmp_path / "outbox" / "hospital-a").is_dir()
