import logging

import pytest
from pydicom.uid import RLELossless, SecondaryCaptureImageStorage

from site_agent.importer.objects import TRANSFER_SYNTAXES, Identity, identify, silence
from site_agent.intake.syntaxes import ALLOWED


def test_what_is_imported_is_what_intake_reads():
    assert set(TRANSFER_SYNTAXES) == ALLOWED


def test_an_object_is_told_by_its_meta_information(tmp_path, write_slice):
    identity = identify(write_slice(tmp_path / "a", SOPInstanceUID="1.2.3"))
    assert identity.sop_instance == "1.2.3"
    assert identity.wanted
    other = Identity(SecondaryCaptureImageStorage, "1.2.3", RLELossless)
    assert not other.wanted
    assert not Identity(identity.sop_class, "1.2.3", "1.2.840.10008.1.2.4.100").wanted


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text" * 100,
        b"\0" * 128 + b"DICM",
        b"\0" * 128 + b"DICM" + b"\2\0\2\0UI\xff\xff" + b"1" * 50,
        b"\0" * 128 + b"DICM" + b"\2\0\1\0OB\0\0\xf0\xff\xff\xff" + b"1" * 50,
        b"\0" * 128 + b"DICM" + b"\2\0\x10\1SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0" * 2000,
    ],
)
def test_what_cannot_be_told_is_nothing(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    assert identify(tmp_path / "a") is None


def test_libraries_are_quiet(caplog):
    silence()
    with caplog.at_level(logging.DEBUG):
        for name in ("pynetdicom.acse", "pydicom", "urllib3.connectionpool", "dicomweb_client.web"):
            logging.getLogger(name).error("CANARY")
    assert not caplog.records
