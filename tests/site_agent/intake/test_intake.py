import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from site_agent.intake.folder import IntakeError, evaluation_images, read_folder
from site_agent.intake.reasons import IntakeReport, SkipReason


def read(folder, *, key=b"key", slices_per_patient=32, modality="CT", sequence=None):
    report = IntakeReport()
    patients = read_folder(
        folder,
        pseudonym_key=key,
        slices_per_patient=slices_per_patient,
        report=report,
        modality=modality,
        sequence=sequence,
    )
    return list(patients), report


def level(hu):
    return np.full((32, 32), hu + 1024, np.uint16)


def test_slices_come_by_patient_ordered_along_the_body(tmp_path, write_slice):
    for name, patient, z in [("1", "A", 30), ("2", "B", 5), ("3", "A", -10), ("4", "A", 12.5)]:
        write_slice(tmp_path / name, level(round(10 * z)), patient_id=patient, position=(0, 0, z))
    patients, report = read(tmp_path)
    levels = sorted([int(item.pixels[0, 0]) for item in patient.slices] for patient in patients)
    assert levels == [[-100, 125, 300], [50]]
    assert (report.files, report.patients, report.slices) == (4, 2, 4)
    assert [p.pseudonym for p in patients] == sorted(p.pseudonym for p in patients)


def test_pseudonyms_depend_on_the_key_and_do_not_hold_the_identifier(tmp_path, write_slice):
    write_slice(tmp_path / "1", patient_id="MRN-12345")
    (first,), _ = read(tmp_path, key=b"one")
    (again,), _ = read(tmp_path, key=b"one")
    (other,), _ = read(tmp_path, key=b"two")
    assert first.pseudonym == again.pseudonym != other.pseudonym
    assert "12345" not in first.pseudonym


@pytest.mark.parametrize("nobody", ["", "ANONYMOUS", " anon "])
def test_without_an_identifier_the_folder_is_the_patient(tmp_path, write_slice, nobody):
    for name, series in (("p1/study-1/1", "1"), ("p1/study-2/1", "2"), ("p2/1", "3")):
        write_slice(tmp_path / name, patient_id=nobody, series=series)
    patients, _ = read(tmp_path)
    assert sorted(len(patient.slices) for patient in patients) == [1, 2]


def test_thin_slices_are_preferred_where_there_are_any(tmp_path, write_slice):
    write_slice(tmp_path / "1", level(10), patient_id="A", SliceThickness=10)
    write_slice(tmp_path / "2", level(20), patient_id="A", SliceThickness=5)
    write_slice(tmp_path / "3", level(30), patient_id="B", SliceThickness=10)
    patients, report = read(tmp_path)
    assert sorted(int(p.slices[0].pixels[0, 0]) for p in patients for _ in p.slices) == [20, 30]
    assert report.not_needed == 1


def test_no_more_slices_than_asked_evenly_spaced(tmp_path, write_slice):
    for z in range(10):
        write_slice(tmp_path / str(z), level(z), position=(0, 0, z))
    (patient,), report = read(tmp_path, slices_per_patient=2)
    assert [int(item.pixels[0, 0]) for item in patient.slices] == [2, 7]
    assert report.not_needed == 8


def test_what_cannot_be_read_is_counted_and_stops_nothing(tmp_path, write_slice):
    write_slice(tmp_path / "good")
    write_slice(tmp_path / "mr", Modality="MR")
    shutil.copy(tmp_path / "good", tmp_path / "good-again")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "empty").touch()
    (tmp_path / "broken.nii").write_bytes(b"\0" * 400)
    os.mkfifo(tmp_path / "pipe")  # opening it would block for ever
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    patients, report = read(tmp_path)
    assert len(patients) == 1
    assert report.skipped == {
        SkipReason.NOT_CT: 1,
        SkipReason.DUPLICATE: 1,
        SkipReason.NOT_AN_IMAGE: 3,
        SkipReason.UNREADABLE: 2,
    }


def test_a_truncated_copy_does_not_hide_the_whole_file(tmp_path, write_slice):
    content = write_slice(tmp_path / "b").read_bytes()
    (tmp_path / "a").write_bytes(content[:-10])
    patients, report = read(tmp_path)
    assert len(patients) == 1
    assert report.skipped == {SkipReason.TRUNCATED: 1}


def test_linked_folders_are_followed_once(tmp_path, write_slice):
    write_slice(tmp_path / "real" / "p1" / "1", patient_id="A")
    folder = tmp_path / "hospital"
    folder.mkdir()
    (folder / "p1").symlink_to(tmp_path / "real" / "p1")
    (tmp_path / "real" / "p1" / "loop").symlink_to(folder)
    patients, report = read(folder)
    assert len(patients) == 1
    assert report.files == 1


def test_volumes_and_slices_in_one_folder(tmp_path, write_slice):
    write_slice(tmp_path / "a" / "1", patient_id="A")
    (tmp_path / "b").mkdir()
    volume = sitk.GetImageFromArray(np.full((40, 20, 20), -1000, np.int16))
    sitk.WriteImage(volume, str(tmp_path / "b" / "ct.nii.gz"))
    patients, _ = read(tmp_path)
    assert sorted(len(patient.slices) for patient in patients) == [1, 32]


def brain(level, *, slices=4, empty=2):
    """A volume (z, y, x): a bright square that is a quarter of each slice, then empty slices."""
    voxels = np.zeros((slices + empty, 32, 32), np.int16)
    voxels[:slices, 8:24, 8:24] = level
    voxels[:slices, 12:20, 12:20] = level // 2
    return voxels


def write_volumes(folder, **volumes):
    folder.mkdir(parents=True, exist_ok=True)
    for name, voxels in volumes.items():
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(folder / f"{name}.nii.gz"))


def test_mr_volumes_of_the_sequence_each_on_its_own_scale(tmp_path):
    write_volumes(tmp_path / "p1", FLAIR=brain(300), T1=brain(900))
    write_volumes(tmp_path / "p2", T1W=brain(5000), T2=brain(70))
    patients, report = read(tmp_path, modality="MR", sequence="t1")
    assert [len(patient.slices) for patient in patients] == [4, 4]
    assert report.skipped == {SkipReason.OTHER_SEQUENCE: 2, SkipReason.MOSTLY_AIR: 4}
    for patient in patients:
        for item in patient.slices:
            assert sorted(set(np.unique(item.pixels))) == [0, 500, 1000]
    everything, report = read(tmp_path, modality="MR")
    assert [len(patient.slices) for patient in everything] == [8, 8]
    few, report = read(tmp_path, modality="MR", slices_per_patient=3)
    assert [len(patient.slices) for patient in few] == [3, 3]
    assert report.not_needed == 10


def test_an_mr_series_of_dicom_files_has_one_scale(tmp_path, write_slice):
    for z, gain in enumerate((1, 2)):
        stored = (brain(400 * gain)[0]).astype(np.uint16)
        for name, modality in (("mr", "MR"), ("ct", "CT")):
            write_slice(
                tmp_path / f"{name}-{z}",
                stored,
                position=(0, 0, z),
                Modality=modality,
                RescaleIntercept=0,
            )
    (patient,), report = read(tmp_path, modality="MR")
    assert [int(item.pixels.max()) for item in patient.slices] == [500, 1000]
    assert report.skipped == {SkipReason.NOT_MR: 2}


def test_a_series_without_signal_is_counted_once(tmp_path):
    write_volumes(tmp_path / "p1", T1=brain(0), T2=brain(9) - np.int16(1000))
    patients, report = read(tmp_path, modality="MR")
    assert patients == []
    assert report.skipped == {SkipReason.NO_SIGNAL: 2}


def test_evaluation_images(tmp_path, write_slice):
    for z in range(12):
        write_slice(tmp_path / str(z), level(0), patient_id="A", position=(0, 0, z))
    write_slice(tmp_path / "b", level(1000), patient_id="B")
    images = evaluation_images(tmp_path, size_px=16, low=-1000, high=1000, modality="CT")
    assert sorted(image.shape for image in images) == [(1, 1, 16, 16), (8, 1, 16, 16)]
    assert {float(value) for image in images for value in np.unique(image)} == {0.5, 1.0}


def test_a_folder_without_images_is_a_clear_error(tmp_path, write_slice):
    write_slice(tmp_path / "mr", Modality="MR")
    with pytest.raises(IntakeError, match="1 not-ct"):
        evaluation_images(tmp_path, size_px=16, low=-1000, high=1000, modality="CT")
    with pytest.raises(IntakeError, match="is not a folder"):
        evaluation_images(tmp_path / "absent", size_px=16, low=-1000, high=1000, modality="CT")


@pytest.mark.parametrize(
    ("hospital", "patients", "skipped"),
    [
        ("ct/hospital-a", 15, {}),
        ("ct/hospital-b", 12, {}),
        ("ct/hospital-c", 16, {SkipReason.NOT_AXIAL: 4}),
        ("ct/irregular", 1, {}),
        ("mr/phi", 0, {SkipReason.NOT_CT: 24}),
        ("mr/irregular", 0, {SkipReason.NOT_CT: 1}),
    ],
)
def test_real_folders(real_data, hospital, patients, skipped):
    found, report = read(real_data / hospital)
    assert report.skipped == skipped
    assert len(found) == patients
    for patient in found:
        for item in patient.slices:
            assert item.pixels.min() >= -1024
            # Air is there, and the middle of the image is a body.
            assert np.percentile(item.pixels, 2) < -900
            assert np.percentile(item.pixels[192:320, 192:320], 90) > -100


def test_real_volumes(real_data):
    images = evaluation_images(
        real_data / "ct" / "public-prior", size_px=64, low=-1000, high=1000, modality="CT"
    )
    assert len(images) == 2
    for image in images:
        assert image.shape == (8, 1, 64, 64)
        assert 0.1 < image.mean() < 0.6


def test_real_slices_show_the_spine_below(real_data):
    # Of the patients with bone in the middle third, supine, prone or on their side.
    images = evaluation_images(
        real_data / "ct" / "hospital-b", size_px=96, low=-1000, high=1000, modality="CT"
    )
    below = [
        float((bone[:, 0, 48:] > 0.62).sum() > (bone[:, 0, :48] > 0.62).sum())
        for bone in (image[..., 32:64] for image in images)
    ]
    assert np.mean(below) >= 0.75


@pytest.mark.parametrize(
    ("hospital", "sequence", "slices", "skipped"),
    [
        (
            "mr/hospital-a",
            "FLAIR",
            [28, 25],
            {SkipReason.OTHER_SEQUENCE: 4, SkipReason.MOSTLY_AIR: 3},
        ),
        ("mr/hospital-b", "FLAIR", [28, 28], {SkipReason.OTHER_SEQUENCE: 3}),
        ("mr/hospital-c", "FLAIR", [32, 32], {SkipReason.OTHER_SEQUENCE: 4}),
        ("mr/phi", "T1", [24], {}),
        ("mr/phi", "FLAIR", [], {SkipReason.OTHER_SEQUENCE: 24}),
        ("ct/hospital-b", None, [], {SkipReason.NOT_MR: 22}),
        ("ct/public-prior", None, [], {SkipReason.NOT_MR: 2}),
    ],
)
def test_real_mr_folders(real_data, hospital, sequence, slices, skipped):
    found, report = read(real_data / hospital, modality="MR", sequence=sequence)
    assert report.skipped == skipped
    assert sorted(len(patient.slices) for patient in found) == sorted(slices)
    for patient in found:
        whole = np.concatenate([item.pixels.ravel() for item in patient.slices])
        assert whole.min() == 0 and 1000 < whole.max() <= 4000
        assert 700 < np.percentile(whole, 99) < 1000
        # Air above the head, brain in the middle.
        assert all(np.median(item.pixels[:3]) < 60 for item in patient.slices)
        assert np.mean([np.median(_middle(item.pixels)) for item in patient.slices]) > 200


def _middle(pixels):
    rows, columns = pixels.shape
    return pixels[rows // 3 : -rows // 3, columns // 3 : -columns // 3]
