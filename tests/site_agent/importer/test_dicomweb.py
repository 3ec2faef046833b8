"""Pulls from a small DICOMweb service in Python that answers as it is told, and counts."""

import re
from base64 import b64encode

import pytest
from pydicom import dcmread
from pydicom.uid import RLELossless, SecondaryCaptureImageStorage

from site_agent.importer import archive as archive_module
from site_agent.importer import dicomweb
from site_agent.importer.archive import Archive, ArchiveError
from site_agent.importer.dicomweb import PullReport, pull
from site_agent.importer.settings import DicomwebSettings
from site_agent.importer.spool import FullError


@pytest.fixture
def slices(tmp_path, write_slice):
    """Two studies: one of a series of five slices, one of two series of two."""
    return [
        write_slice(
            tmp_path / f"CANARY-{study}-{series}-{number}",
            position=(0, 0, 2.0 * number),
            series=f"1.2.{study}.{series}",
            StudyInstanceUID=f"1.2.{study}",
            PatientName="CANARY^JANE",
        )
        for study, series, count in [(1, 1, 5), (2, 1, 2), (2, 2, 2)]
        for number in range(count)
    ]


@pytest.fixture
def fetch(open_spool, monkeypatch):
    monkeypatch.setattr(dicomweb, "_PAUSE_S", 0.0)

    def fetched(service, *, spool=None, modality="CT", **settings):
        report = PullReport()
        wanted = DicomwebSettings.model_validate({"url": service.url, "timeout_s": 5, **settings})
        with Archive(wanted, modality=modality) as archive:
            pull(archive, spool or open_spool(), report=report, on_progress=lambda *_: None)
        return report

    return fetched


def contents(spool):
    return sorted(path.read_bytes() for path in spool.folder.iterdir())


def test_all_that_matches_comes_as_it_is_stored(serve, slices, open_spool, fetch):
    with serve(slices) as service:
        report = fetch(service)
        assert service.asked == {"series": 3}
    assert (report.studies, report.series, report.objects) == (2, 3, 9)
    assert (report.fetched, report.present, report.missing) == (9, 0, 0)
    assert contents(open_spool()) == sorted(path.read_bytes() for path in slices)


def test_what_is_asked_for_is_what_the_settings_say(serve, slices, fetch):
    with serve(slices) as service:
        fetch(
            service,
            studied_from="2024-01-02",
            study_filters={"StudyDescription": "*a & b*"},
            series_filters={"ProtocolName": "thorax"},
        )
        assert service.queries[0]["StudyDate"] == "20240102-"
        assert service.queries[0]["ModalitiesInStudy"] == "CT"
        assert service.queries[0]["StudyDescription"] == "*a & b*"
        assert service.queries[-1]["Modality"] == "CT"
        assert service.queries[-1]["ProtocolName"] == "thorax"


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_lists_come_in_pages(serve, slices, fetch, page):
    with serve(slices) as service:
        service.page = page
        assert fetch(service).fetched == 9


def test_a_pull_goes_on_where_it_stopped(serve, slices, open_spool, fetch):
    with serve(slices) as service:
        fetch(service)
        first, *_ = sorted(open_spool().folder.iterdir())
        first.unlink()
        service.asked.clear()
        report = fetch(service)
        assert (report.present, report.fetched) == (8, 1)
        assert sum(service.asked.values()) == 1
        service.asked.clear()
        assert fetch(service).fetched == 0
        assert not service.asked


def test_a_series_that_breaks_off_is_fetched_again_without_what_came(
    serve, slices, open_spool, fetch, monkeypatch
):
    monkeypatch.setattr(archive_module, "_CHUNK_BYTES", 1000)
    with serve(slices) as service:
        size = len(slices[0].read_bytes())
        service.break_after = int(2.5 * size)
        report = fetch(service)
        assert (report.fetched, report.missing) == (9, 0)
        assert service.asked == {"series": 3, "instance": 3}
    assert len(list(open_spool().folder.iterdir())) == 9, "and nothing half-written stays"


def test_series_that_cannot_be_had_are_counted_and_stop_nothing(serve, slices, fetch):
    with serve(slices) as service:
        service.status_of_series = 500
        report = fetch(service)
    assert (report.fetched, report.missing) == (0, 9)
    assert "9 missing" in report.summary()


def test_what_is_not_wanted_is_not_kept(serve, tmp_path, write_slice, open_spool, fetch):
    study = {"StudyInstanceUID": "1.2.1", "series": "1.2.1.1"}
    good = write_slice(tmp_path / "a", **study)
    capture = write_slice(tmp_path / "b", SOPClassUID=SecondaryCaptureImageStorage, **study)
    dataset = dcmread(capture)
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.save_as(capture)
    with serve([good, capture]) as service:
        (key,) = service.objects
        service.objects[key] |= {"1.2.1.1.3": b"<html>CANARY</html>"}
        report = fetch(service)
    assert report.refused == {"other-kind": 1, "not-dicom": 1}
    assert report.missing == 2
    assert contents(open_spool()) == [good.read_bytes()]


def test_too_large_an_object_is_passed_over(serve, slices, open_spool, fetch):
    large = len(slices[0].read_bytes()) + 100
    with serve(slices) as service:
        key = ("1.2.1", "1.2.1.1")
        first = next(iter(service.objects[key]))
        service.objects[key][first] += b"x" * 1000
        report = fetch(service, spool=open_spool(max_object_bytes=large))
    assert report.refused == {"too-large": 1}
    assert (report.fetched, report.missing) == (8, 1)


def test_a_full_spool_stops_and_keeps_what_came(serve, slices, open_spool, fetch):
    spool = open_spool(quota_bytes=int(3.5 * len(slices[0].read_bytes())))
    with serve(slices) as service, pytest.raises(FullError):
        fetch(service, spool=spool)
    assert len(list(spool.folder.iterdir())) == 3


def test_credentials_come_from_files(serve, tmp_path, slices, fetch):
    token, login = tmp_path / "token", tmp_path / "login"
    token.write_text("t0ken\n")
    login.write_text("user:pass:word\n")
    token.chmod(0o600)
    login.chmod(0o600)
    with serve(slices) as service:
        fetch(service, token_file=token)
        assert {header["Authorization"] for header in service.headers} == {"Bearer t0ken"}
        service.headers.clear()
        fetch(service, login_file=login)
        expected = "Basic " + b64encode(b"user:pass:word").decode()
        assert {header["Authorization"] for header in service.headers} == {expected}
        service.headers.clear()
        fetch(service)
        assert {header["Authorization"] for header in service.headers} == {None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": 401}, r"refuses this user \(401\); check token_file"),
        ({"status": 404}, r"importer\.dicomweb\.url: nothing is there \(404\)"),
        ({"status": 400}, r"does not take the request \(400\); check study_filters"),
        ({"status": 500}, r"the service fails \(500\)"),
        ({"body": b"<html>CANARY</html>"}, r"importer\.dicomweb\.url: what answers .* not QIDO"),
        ({"body": b'{"0020000D": 3}'}, None),
        ({"body": b'[{"0020000D": {"Value": ["../../CANARY"]}}, 3, null]'}, None),
        ({"location": "http://127.0.0.1:1/CANARY"}, r"sends elsewhere"),
    ],
)
def test_answers_that_cannot_be_used_name_the_setting(serve, slices, fetch, change, message):
    with serve(slices) as service:
        for name, value in change.items():
            setattr(service, name, value)
        if message is None:
            assert fetch(service).studies == 0
            return
        with pytest.raises(ArchiveError, match=message) as raised:
            fetch(service)
    assert "CANARY" not in str(raised.value)
    assert raised.value.__suppress_context__


def test_an_endless_list_is_cut_off(serve, slices, fetch, monkeypatch):
    monkeypatch.setattr(archive_module, "MAX_LIST_BYTES", 10_000)
    with serve(slices) as service:
        service.body = b"[" + b" " * 100_000 + b"]"
        with pytest.raises(ArchiveError, match="more than it should"):
            fetch(service)


def test_more_studies_than_allowed_are_refused(serve, slices, fetch):
    with serve(slices) as service, pytest.raises(ArchiveError, match="more than 1 studies match"):
        fetch(service, max_studies=1)


def test_nobody_there_is_a_clear_error(serve, slices, fetch):
    service = serve(slices)
    service.server.server_close()
    with pytest.raises(ArchiveError, match=r"importer\.dicomweb\.url: 127.* does not answer"):
        fetch(service)


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        (None, 0o600, "cannot be read"),
        ("secret\n", 0o644, "chmod 600"),
        ("", 0o600, "one line"),
        ("a\nb\n", 0o600, "one line"),
    ],
)
def test_a_credential_file_that_will_not_do(tmp_path, text, mode, message):
    path = tmp_path / "token"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    settings = DicomwebSettings(url="https://h/d", token_file=path)
    with pytest.raises(ArchiveError, match=re.escape(message)) as raised:
        Archive(settings, modality="CT")
    assert "secret" not in str(raised.value)


def test_the_environments_proxy_is_used_and_no_netrc(serve, tmp_path, slices, fetch, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password CANARY\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with serve(slices) as service:
        fetch(service)
        assert {header["Authorization"] for header in service.headers} == {None}
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("no_proxy", "")
        with pytest.raises(ArchiveError, match="NO_PROXY"):
            fetch(service)


def test_compressed_objects_are_kept_compressed(serve, tmp_path, write_slice, open_spool, fetch):
    path = write_slice(tmp_path / "a", StudyInstanceUID="1.2.1", series="1.2.1.1")
    dataset = dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)
    with serve([path]) as service:
        assert fetch(service).fetched == 1
    assert contents(open_spool()) == [path.read_bytes()]
