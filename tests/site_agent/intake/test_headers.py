import numpy as np
import pytest
from pydicom import dcmread

from site_agent.intake import headers
from site_agent.intake.folder import read_folder
from site_agent.intake.headers import HEADERS_FILE
from site_agent.intake.reasons import IntakeReport


def read(folder, memory, *, sequence=None, stop_at=None):
    def listen(stage, done, _total):
        if stage == "headers" and done == stop_at:
            raise KeyboardInterrupt

    report = IntakeReport(on_progress=listen)
    patients = read_folder(
        folder,
        pseudonym_key=b"key",
        slices_per_patient=32,
        report=report,
        modality="CT",
        sequence=sequence,
        memory=memory,
    )
    found = {one.pseudonym: [item.pixels.tolist() for item in one.slices] for one in patients}
    return found, report


def write_folder(folder, write_slice):
    for number in range(6):
        stored = np.full((32, 32), 1000 + number, np.uint16)
        name = folder / f"CANARYPATH{number}"
        write_slice(
            name, stored, patient_id=f"CANARY-ID-{number % 2}", series="1.2.840.77",
            position=(0, 0, number), FrameOfReferenceUID="1.2.840.78",
        )  # fmt: skip
    (folder / "notes").write_text("no image")


def test_an_interrupted_index_goes_on_where_it_stopped(tmp_path, write_slice):
    write_folder(tmp_path / "images", write_slice)
    whole, _ = read(tmp_path / "images", None)
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path / "images", tmp_path / "memory", stop_at=4)
    again, report = read(tmp_path / "images", tmp_path / "memory")
    assert report.remembered == 4
    assert again == whole
    _, report = read(tmp_path / "images", tmp_path / "memory")
    assert report.remembered == report.files == 7


def test_changed_files_and_other_questions_are_read_again(tmp_path, write_slice):
    write_folder(tmp_path / "images", write_slice)
    read(tmp_path / "images", tmp_path)
    changed = tmp_path / "images" / "CANARYPATH3"
    dataset = dcmread(changed)
    dataset.PatientName = "more"
    dataset.save_as(changed)
    (tmp_path / "images" / "CANARYPATH4").unlink()
    _, report = read(tmp_path / "images", tmp_path)
    assert report.remembered == report.files - 1 == 5
    _, report = read(tmp_path / "images", tmp_path, sequence="T1")
    assert report.remembered == 0


def test_the_memory_holds_no_identifier_and_is_the_sites_own(tmp_path, write_slice):
    write_folder(tmp_path / "images", write_slice)
    read(tmp_path / "images", tmp_path)
    path = tmp_path / HEADERS_FILE
    content = path.read_bytes()
    # The control: what is there can be found.
    assert b"position_mm" in content
    instance = dcmread(tmp_path / "images" / "CANARYPATH0").SOPInstanceUID
    for secret in (b"CANARY", b"1.2.840.77", b"1.2.840.78", instance.encode()):
        assert secret not in content
    assert path.stat().st_mode & 0o077 == 0


def test_a_damaged_memory_begins_anew(tmp_path, write_slice):
    write_folder(tmp_path / "images", write_slice)
    (tmp_path / HEADERS_FILE).write_bytes(b"no database" * 1000)
    found, report = read(tmp_path / "images", tmp_path)
    assert len(found) == 2 and report.remembered == 0
    assert headers.FORMAT >= 1
