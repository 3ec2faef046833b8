import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from safetensors.numpy import load_file

from aggregator.exchange import Exchange
from aggregator.federation import federate
from aggregator.simulate import (
    Hospital,
    HospitalError,
    in_process,
    members_of,
    open_hospitals,
    pooled,
    split_patients,
)
from shared.architectures import Residual
from shared.contract import Anchor, Probes, RunContract
from shared.messages import SummaryHeader, decode, encode, probe_batch
from shared.readers import ReaderError
from shared.tasks.settings import CtDenoise
from shared.trajectory import start
from site_agent.cohort import build_cohort
from site_agent.intake.slices import PatientSlices, Slice, SlicePair

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


SMALL = CONTRACT.model_copy(
    update={
        "student": Residual(depth=2, width=4),
        "anchor_network": Residual(depth=2, width=4),
        "probes": Probes(requests=1, depths=(3, 6), steps=20),
        "anchor": Anchor(rounds=2, local_steps=5, public_steps=5, crop_px=16),
    }
)


@pytest.fixture
def hospitals(write_hospitals: WriteHospitals, tmp_path: Path) -> list[Hospital]:
    """Three, whose patients count 1, 5 and 10 in their buckets."""
    opened, _ = open_hospitals(
        write_hospitals(a=3, b=6, c=11),
        contract=SMALL,
        homes=tmp_path / "homes",
        split=None,
        sequence=None,
    )
    return opened


def secure(hospitals: Sequence[Hospital]) -> RunContract:
    changes = {"granularity": "federation", "members": members_of(hospitals)}
    return RunContract.model_validate({**dict(SMALL), **changes})


def distilled(
    contract: RunContract, hospitals: Sequence[Hospital], run: Path, ask: Exchange | None = None
) -> dict[str, np.ndarray]:
    """The pairs of a run of its own."""
    federate(
        contract=contract,
        sites=[one.name for one in hospitals],
        exchange=ask or in_process(hospitals, modality="CT", outboxes=run / "outbox"),
        run=run,
    )
    return load_file(run / "pairs.safetensors")


def test_a_secure_sum_gives_the_pairs_of_the_mean(
    hospitals: list[Hospital], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summed = secure(hospitals)
    # Everything random follows from the digest: one for both, so that they can be compared.
    monkeypatch.setattr(RunContract, "digest", lambda _: "ab" * 32)
    # In the clear, long answers are shortened; in a sum nobody sees which they are.
    monkeypatch.setattr("aggregator.distill.anchor.CAPPED_FROM_SITES", 4)
    clear, secret = (
        distilled(contract, hospitals, tmp_path / contract.granularity)
        for contract in (SMALL, summed)
    )
    for name in ("lq", "hq"):
        np.testing.assert_allclose(secret[name], clear[name], rtol=0, atol=1e-5)
    # The control: a mean in which sites weigh the same is another one.
    monkeypatch.setattr("site_agent.summaries.patient_bucket", lambda _: 5)
    even = distilled(summed, hospitals, tmp_path / "even")
    assert np.abs(even["hq"] - clear["hq"]).max() > 1e-4
    counted = [
        json.loads((tmp_path / name / "result.json").read_text())["sites"]["hospital-b"]["releases"]
        for name in ("cohort", "federation")
    ]
    assert counted == [4, 4]


@pytest.mark.parametrize("killed_at", [2, 4, 9])
def test_a_secure_sum_that_was_killed_goes_on_and_ends_with_the_same_pairs(
    hospitals: list[Hospital], tmp_path: Path, killed_at: int
) -> None:
    contract, run = secure(hospitals), tmp_path / "killed"
    straight = distilled(contract, hospitals, tmp_path / "straight")
    ask = in_process(hospitals, modality="CT", outboxes=run / "outbox")
    calls = iter(range(1, 100))

    def killed(payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
        answers = ask(payload, round, sites)
        if next(calls) == killed_at:
            raise KeyboardInterrupt
        return answers

    with pytest.raises(KeyboardInterrupt):
        distilled(contract, hospitals, run, killed)
    again = distilled(contract, hospitals, run)
    assert all((again[name] == straight[name]).all() for name in ("lq", "hq"))


def test_members_of_a_simulation_are_the_same_wherever_it_runs(
    hospitals: list[Hospital], tmp_path: Path
) -> None:
    elsewhere = [Hospital(one.name, tmp_path / "else" / one.name, ()) for one in hospitals]
    assert members_of(hospitals) == members_of(elsewhere[::-1])
    with pytest.raises(HospitalError, match="needs 3 hospitals, not hospital-a, hospital-b"):
        members_of(hospitals[:2])


def test_a_run_on_real_pairs_ends_where_enough_patients_have_some(tmp_path: Path) -> None:
    random = np.random.default_rng(4)

    def one(noise: float) -> Slice:
        pixels = random.normal(0, 200, (32, 32)) + noise * random.normal(0, 100, (32, 32))
        return Slice(np.rint(pixels).astype(np.int16), (2.0, 2.0), 3.0)

    hospitals = []
    for name, paired in {"hospital-a": 3, "hospital-b": 2, "hospital-c": 1}.items():
        everyone = [
            PatientSlices(
                f"{number:032x}",
                [one(0)],
                [SlicePair("dose", lq=one(1), hq=one(0))] * (number < paired),
            )
            for number in range(4)
        ]
        build_cohort(tmp_path / name / "cohort", everyone, modality="CT")
        hospitals.append(Hospital(name, tmp_path / name, (name,)))
    task = SMALL.task.model_copy(update={"pairs": "real"})
    contract = SMALL.model_copy(update={"task": task, "min_patients": 2})
    pairs = distilled(contract, hospitals, tmp_path / "real")
    told = json.loads((tmp_path / "real" / "result.json").read_text())
    released = {name: site["releases"] for name, site in told["sites"].items()}
    assert released == {"hospital-a": 4, "hospital-b": 4, "hospital-c": 0}
    lines = (tmp_path / "real" / "events.jsonl").read_text().splitlines()
    refusal = "hospital-c: refused: too-few-pairs (incident "
    rounds = {one["round"] for one in map(json.loads, lines) if refusal in one["message"]}
    assert rounds == {1, 2, 3}
    # Of the distilled HQ, which has no second reconstruction, LQ is made by the task.
    assert pairs["lq"].shape == pairs["hq"].shape
    assert not np.array_equal(pairs["lq"], pairs["hq"])
