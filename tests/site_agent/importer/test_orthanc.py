"""Debian's Orthanc and dcmtk on loopback: pushed, pulled and read from a folder are one cohort."""

import json
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import requests
from pydicom import dcmread
from pydicom.uid import ImplicitVRLittleEndian, RLELossless

from site_agent.cohort import build_cohort
from site_agent.importer.archive import Archive
from site_agent.importer.dicomweb import PullReport, pull
from site_agent.importer.settings import DicomwebSettings
from site_agent.intake.folder import read_folder
from site_agent.intake.reasons import IntakeReport

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def program(name, package):
    # Not along PATH: pynetdicom installs a storescu of its own.
    found = shutil.which(name, path="/usr/sbin:/usr/bin")
    if found is None:
        pytest.skip(f"{name} is not there: install Debian's package {package}")
    return found


@pytest.fixture
def export(tmp_path, write_slice):
    """What an archive may hold: three patients, two encodings, noise that tells slices apart."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "export"
    for patient in range(3):
        for number in range(4):
            path = write_slice(
                folder / f"patient-{patient}" / f"IM{generator.integers(10**9)}",
                generator.integers(0, 2000, (48, 40)).astype(np.uint16),
                patient_id=f"P{patient}",
                position=(0, 0, 2.0 * number),
                series=f"1.2.826.0.1.{patient + 1}.2",
                StudyInstanceUID=f"1.2.826.0.1.{patient + 1}",
                StudyDate=f"2024010{patient + 1}",
                PatientName=f"Person^{patient}",
            )
            if patient == 1:
                dataset = dcmread(path)
                dataset.compress(RLELossless)
                dataset.save_as(path)
    return folder


def digest(folder, cohort):
    report = IntakeReport()
    patients = read_folder(
        folder, pseudonym_key=b"k" * 32, slices_per_patient=32, report=report, modality="CT"
    )
    return build_cohort(cohort, patients, modality="CT").digest()


def images(export):
    return sorted(path for path in export.rglob("*") if path.is_file())


@contextmanager
def orthanc(folder, port):
    """An Orthanc with its DICOMweb plugin at a port of loopback, without a DICOM port."""
    command = program("Orthanc", "orthanc")
    if not PLUGIN.exists():
        pytest.skip("Orthanc has no DICOMweb: install Debian's package orthanc-dicomweb")
    folder.mkdir()
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"site": "s3cret"},
        "DicomServerEnabled": False,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([command, folder / "orthanc.json"], stdout=log, stderr=log)
    try:
        for _ in range(300):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def test_a_series_pushed_with_storescu_gives_the_folders_cohort(
    tmp_path, export, open_spool, listening
):
    storescu, echoscu = program("storescu", "dcmtk"), program("echoscu", "dcmtk")
    spool = open_spool()
    with listening(spool) as (port, said):
        titles = ["-aet", "PACS", "-aec", "FEDSTILL", "127.0.0.1", str(port)]
        subprocess.run([echoscu, *titles], check=True, timeout=60)
        # -xr proposes RLE beside the uncompressed syntaxes; twice, as archives repeat themselves.
        for _ in range(2):
            subprocess.run([storescu, "+sd", "+r", "-xr", *titles, export], check=True, timeout=60)
        stranger = ["-aet", "STRANGER", *titles[2:]]
        assert subprocess.run([echoscu, *stranger], check=False, timeout=60).returncode != 0
    assert len(list(spool.folder.iterdir())) == len(images(export))
    assert digest(spool.folder, tmp_path / "pushed") == digest(export, tmp_path / "read")
    assert "'stored': 12" in said[0] and "'already_there': 12" in said[1]


def test_studies_pulled_from_orthanc_give_the_folders_cohort(
    tmp_path, export, open_spool, free_port
):
    login = tmp_path / "login"
    login.write_text("site:s3cret\n")
    login.chmod(0o600)
    spool = open_spool()
    with orthanc(tmp_path / "orthanc", free_port) as url:
        with requests.Session() as session:
            session.auth = ("site", "s3cret")
            for path in images(export):
                session.post(f"{url}/instances", data=path.read_bytes()).raise_for_status()

        def pulled(**settings):
            report = PullReport()
            wanted = DicomwebSettings.model_validate(
                {"url": f"{url}/dicom-web", "login_file": login, **settings}
            )
            with Archive(wanted, modality="CT") as archive:
                pull(archive, spool, report=report, on_progress=lambda *_: None)
            return report

        day = pulled(studied_from="2024-01-02", studied_to="2024-01-02")
        assert (day.studies, day.fetched, day.missing) == (1, 4, 0)
        rest = pulled()
        assert (rest.studies, rest.present, rest.fetched, rest.missing) == (3, 4, 8, 0)
    syntaxes = {dcmread(path).file_meta.TransferSyntaxUID for path in spool.folder.iterdir()}
    assert RLELossless in syntaxes, "as stored, not decompressed"
    assert ImplicitVRLittleEndian not in syntaxes
    assert digest(spool.folder, tmp_path / "pulled") == digest(export, tmp_path / "read")


def test_another_image_is_another_digest(tmp_path, export, write_slice):
    before = digest(export, tmp_path / "before")
    write_slice(export / "patient-0" / "more", patient_id="P0", position=(0, 0, 99))
    assert digest(export, tmp_path / "after") != before
