"""Which patients take part and which are kept back."""

from pathlib import Path

import pytest

from deploy.demo.cohorts import HOSPITALS, CohortsError, arrange, keep_back


def write_patients(data: Path, *, count: int) -> None:
    for hospital in HOSPITALS:
        for number in range(count):
            folder = data / hospital / f"{hospital[-1]}-patient-{number}"
            folder.mkdir(parents=True)
            (folder / "1.dcm").write_bytes(b"")
        (data / hospital / "notes.txt").write_text("not a patient")


@pytest.mark.parametrize("count", [6, 10, 12, 15, 16, 99])
def test_a_tenth_to_a_fifth_is_kept_back(count: int) -> None:
    kept = keep_back([f"patient-{number}" for number in range(count)])
    assert len(kept) == len(set(kept))
    assert 0.1 <= len(kept) / count <= 0.2


def test_the_choice_is_stable_and_does_not_depend_on_the_order() -> None:
    names = [f"patient-{number}" for number in range(20)]
    # The lowest SHA-256 by sha256sum(1).
    assert keep_back(names) == keep_back(names[::-1])
    assert keep_back(names) == ["patient-10", "patient-14", "patient-15", "patient-17"]


def test_nobody_is_on_both_sides_and_nobody_is_lost(tmp_path: Path) -> None:
    write_patients(tmp_path / "data", count=12)
    cohorts = arrange(tmp_path / "data", folder=tmp_path / "demo")
    training = {link.resolve() for images in cohorts.sites.values() for link in images.iterdir()}
    evaluation = {link.resolve() for link in cohorts.evaluation.iterdir()}
    assert len(training) == 30
    assert len(evaluation) == 6
    assert not training & evaluation
    everyone = {p for h in HOSPITALS for p in (tmp_path / "data" / h).iterdir() if p.is_dir()}
    assert training | evaluation == everyone
    assert cohorts.public is None


def test_a_public_prior_is_found(tmp_path: Path) -> None:
    write_patients(tmp_path / "data", count=6)
    (tmp_path / "data" / "public-prior").mkdir()
    cohorts = arrange(tmp_path / "data", folder=tmp_path / "demo")
    assert cohorts.public == tmp_path / "data" / "public-prior"


def test_a_missing_or_small_hospital_is_named(tmp_path: Path) -> None:
    write_patients(tmp_path / "data", count=5)
    with pytest.raises(CohortsError, match="hospital-a: has 5 patient folders; it needs 6"):
        arrange(tmp_path / "data", folder=tmp_path / "one")
    with pytest.raises(CohortsError, match="hospital-a: is not there; DATA needs hospital-a"):
        arrange(tmp_path / "nowhere", folder=tmp_path / "two")
