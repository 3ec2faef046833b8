import json
import os
import time

import numpy as np
import pytest

from site_agent.cohort import CohortError, build_cohort, open_cohort
from site_agent.intake.slices import PatientSlices, Slice


def patients(levels):
    """One patient for each list, with a slice of each level (HU); sizes differ."""
    for number, values in enumerate(levels):
        yield PatientSlices(
            pseudonym=f"{number:032x}",
            slices=[
                Slice(np.full((16 + 2 * number, 20), value, np.int16), (1.0, 1.0), 2.0)
                for value in values
            ],
        )


def test_images_by_patient(tmp_path):
    build_cohort(tmp_path / "cohort", patients([[0, 500], [1000]]), modality="CT")
    cohort = open_cohort(tmp_path / "cohort")
    images = cohort.images(size_px=8, low=-1000, high=1000)
    assert (cohort.patients, cohort.slices) == (2, 3)
    assert [image.shape for image in images] == [(2, 1, 8, 8), (1, 1, 8, 8)]
    assert images[0][:, 0, 4, 4] == pytest.approx([0.5, 0.75])
    assert images[1][0, 0, 4, 4] == 1


def test_no_more_slices_a_patient_than_asked(tmp_path):
    cohort = build_cohort(tmp_path / "cohort", patients([range(0, 1000, 100)]), modality="CT")
    (image,) = cohort.images(size_px=4, low=0, high=1000, max_slices_per_patient=2)
    assert image[:, 0, 2, 2] == pytest.approx([0.2, 0.7])
    (image,) = cohort.images(size_px=4, low=0, high=1000)
    assert len(image) == 8


def test_opens_at_once_with_thousands_of_slices(tmp_path):
    build_cohort(tmp_path / "cohort", patients([range(10)] * 500), modality="CT")
    started = time.perf_counter()
    cohort = open_cohort(tmp_path / "cohort")
    assert time.perf_counter() - started < 0.3
    assert cohort.slices == 5000


def test_files_are_private_and_hold_no_more_than_they_must(tmp_path):
    build_cohort(tmp_path / "cohort", patients([[0]]), modality="CT")
    assert (tmp_path / "cohort").stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "cohort").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    index = json.loads((tmp_path / "cohort" / "index.json").read_text())
    assert set(index) == {
        *("version", "modality", "data", "patients", "patient"),
        *("rows", "columns", "row_mm", "column_mm", "thickness_mm"),
    }


def test_a_build_that_fails_leaves_the_old_cohort(tmp_path):
    def cut_short():
        yield from patients([[7]])
        raise KeyboardInterrupt

    build_cohort(tmp_path, patients([[100]]), modality="CT")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        build_cohort(tmp_path, cut_short(), modality="CT")
    with pytest.raises(CohortError, match="no axial CT image"):
        build_cohort(tmp_path, [], modality="CT")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    (image,) = open_cohort(tmp_path).images(size_px=4, low=0, high=100)
    assert image.max() == 1


def test_a_killed_build_leaves_the_old_cohort_and_its_rubbish_goes_next_time(tmp_path):
    build_cohort(tmp_path, patients([[100]]), modality="CT")
    pid = os.fork()
    if pid == 0:

        def killed():
            yield from patients([[7]])
            os.kill(os.getpid(), 9)

        build_cohort(tmp_path, killed(), modality="CT")
    os.waitpid(pid, 0)
    assert list(tmp_path.glob("*.part"))
    assert open_cohort(tmp_path).slices == 1
    build_cohort(tmp_path, patients([[100], [100]]), modality="CT")
    assert not list(tmp_path.glob("*.part"))
    assert open_cohort(tmp_path).patients == 2


def test_a_reader_keeps_the_cohort_it_opened(tmp_path):
    old = build_cohort(tmp_path, patients([[100]]), modality="CT")
    build_cohort(tmp_path, patients([[0]]), modality="CT")
    (image,) = old.images(size_px=4, low=0, high=100)
    assert image.max() == 1
    assert len(list(tmp_path.glob("*.i16"))) == 1


def test_only_one_builds_at_a_time(tmp_path):
    def building_again():
        yield from patients([[0]])
        build_cohort(tmp_path, patients([[1]]), modality="CT")

    with pytest.raises(CohortError, match="another index is being built"):
        build_cohort(tmp_path, building_again(), modality="CT")


def test_damage_is_found_when_opening(tmp_path):
    with pytest.raises(CohortError, match="nothing is indexed yet"):
        open_cohort(tmp_path / "absent")
    build_cohort(tmp_path, patients([[0], [1]]), modality="CT")
    index = tmp_path / "index.json"
    good = index.read_text()
    for damaged in (
        "",
        "[]",
        good[:-5],
        good.replace('"patient":[0,1]', '"patient":[1,0]'),
        good.replace('"patient":[0,1]', '"patient":[0,0]'),
        good.replace('"rows":[16', '"rows":[-16'),
        good.replace('"rows":[16,', '"rows":['),
        good.replace('"data":"slices', '"data":"../slices'),
    ):
        assert damaged != good
        index.write_text(damaged)
        with pytest.raises(CohortError, match="damaged"):
            open_cohort(tmp_path)
    index.write_text(good)
    (data,) = tmp_path.glob("*.i16")
    data.write_bytes(data.read_bytes()[:-2])
    with pytest.raises(CohortError, match="incomplete"):
        open_cohort(tmp_path)


def test_the_index_says_which_modality_it_is_of(tmp_path):
    build_cohort(tmp_path, patients([[100]]), modality="MR")
    assert open_cohort(tmp_path).index.modality == "MR"
    build_cohort(tmp_path, patients([[100]]), modality="CT")
    assert open_cohort(tmp_path).index.modality == "CT"
