"""The listener, with pynetdicom as the sender."""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

from site_agent import events
from site_agent.enrolment import enrol
from site_agent.importer.listener import Listener, ListenerError
from site_agent.importer.settings import ListenSettings


def sender(port, *, caller="PACS", called="FEDSTILL", classes=(CTImageStorage,), max_pdu=16384):
    entity = AE(ae_title=caller)
    entity.acse_timeout, entity.dimse_timeout, entity.network_timeout = 5, 20, 20
    for storage_class in classes:
        entity.add_requested_context(
            storage_class, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
        )
    return entity.associate("127.0.0.1", port, ae_title=called, max_pdu=max_pdu)


def send(port, *paths, **options):
    association = sender(port, **options)
    assert association.is_established
    statuses = [association.send_c_store(path).Status for path in paths]
    association.release()
    return statuses


def stored(spool):
    return [path for path in spool.folder.iterdir() if not path.name.startswith(".")]


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_bytes_come_as_they_were_sent(tmp_path, write_slice, open_spool, listening):
    path = write_slice(tmp_path / "a", PatientName="CANARY^JANE", StudyDescription="CANARY")
    spool = open_spool()
    with listening(spool) as (port, said):
        assert send(port, path, path) == [0, 0]
        wait_for(lambda: said)
    (received,) = stored(spool)
    sent, came = dcmread(path), dcmread(received)
    assert came == sent
    assert came.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert came.PixelData == sent.PixelData
    assert received.stat().st_mode & 0o777 == 0o600
    assert "'already_there': 1" in said[0]
    assert "'stored': 1" in said[0]
    assert "127.0.0.1" not in said[0]
    assert sent.SOPInstanceUID not in received.name + "".join(said)
    assert "CANARY" not in "".join(said)


def test_echo_is_answered(open_spool, listening):
    with listening(open_spool()) as (port, _):
        association = sender(port, classes=(Verification,))
        assert association.send_c_echo().Status == 0
        association.release()


@pytest.mark.parametrize("titles", [{"caller": "STRANGER"}, {"called": "OTHER"}])
def test_an_ae_title_that_is_not_listed_is_refused(
    tmp_path, write_slice, open_spool, listening, titles
):
    spool = open_spool()
    with listening(spool) as (port, said):
        association = sender(port, **titles)
        assert association.is_rejected
        wait_for(lambda: said)
        assert send(port, write_slice(tmp_path / "a")) == [0]
    assert "importer.listen.callers" in said[0]
    assert "STRANGER" not in said[0]


def test_other_kinds_of_objects_are_not_agreed_on(open_spool, listening):
    with listening(open_spool()) as (port, _):
        association = sender(port, classes=(SecondaryCaptureImageStorage, Verification))
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        association.release()
    assert accepted == {Verification}


def test_too_large_an_object_is_refused_and_the_next_one_taken(
    tmp_path, write_slice, open_spool, listening
):
    large = write_slice(tmp_path / "large", np.zeros((1024, 1024), np.uint16))
    small = write_slice(tmp_path / "small")
    spool = open_spool(max_object_bytes=200_000)
    with listening(spool) as (port, said):
        assert send(port, large, small, large) == [0xA700, 0, 0xA700]
        wait_for(lambda: said)
    (received,) = stored(spool)
    assert dcmread(received).SOPInstanceUID == dcmread(small).SOPInstanceUID
    assert "'refused': '2 too-large'" in said[0]
    assert len(list(spool.folder.iterdir())) == 1


def test_a_full_spool_refuses(tmp_path, write_slice, open_spool, listening):
    paths = [write_slice(tmp_path / str(n), np.zeros((64, 64), np.uint16)) for n in range(4)]
    spool = open_spool(quota_bytes=20_000)
    with listening(spool) as (port, _):
        assert send(port, *paths) == [0, 0, 0xA700, 0xA700]
    assert len(list(spool.folder.iterdir())) == 2


def test_what_a_sender_makes_the_listener_hold_is_bounded(open_spool, listening):
    """Sends 40 MB of one object by hand, and looks at the process's memory meanwhile."""
    spool = open_spool(max_object_bytes=1_000_000)
    with listening(spool) as (port, _):
        association = sender(port)
        answers = []
        association.bind(evt.EVT_DIMSE_RECV, lambda event: answers.append(event.message))
        # A C-STORE request by hand (part 7, 9.3.1.1), then fragments without end.
        uid = b"1.2.3\0"
        elements = [
            (0x0002, CTImageStorage.encode() + b"\0" * (len(CTImageStorage) % 2)),
            (0x0100, struct.pack("<H", 1)),
            (0x0110, struct.pack("<H", 1)),
            (0x0700, struct.pack("<H", 0)),
            (0x0800, struct.pack("<H", 1)),
            (0x1000, uid),
        ]
        body = b"".join(struct.pack("<HHL", 0, tag, len(v)) + v for tag, v in elements)
        body = struct.pack("<HHLL", 0, 0, 4, len(body)) + body
        context = association.accepted_contexts[0].context_id
        raw = association.dul.socket.socket

        def pdv(control, data):
            item = struct.pack(">LBB", len(data) + 2, context, control) + data
            return struct.pack(">BBL", 4, 0, len(item)) + item

        before = _resident_bytes()
        raw.sendall(pdv(3, body))
        for _ in range(2500):
            raw.sendall(pdv(0, b"x" * 16000))
        assert _resident_bytes() - before < 20_000_000
        raw.sendall(pdv(2, b"x"))
        wait_for(lambda: answers, seconds=30)
        assert answers[0].command_set.Status == 0xA700
        association.abort()
    assert list(spool.folder.iterdir()) == []


def _resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_length_that_claims_gigabytes_ends_the_connection(open_spool, listening):
    with listening(open_spool()) as (port, _):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
            raw.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFF0) + b"x" * 1000)
            with contextlib.suppress(ConnectionResetError):
                assert raw.recv(100)[:1] in (b"", b"\x07")
        association = sender(port)
        assert association.is_established
        association.release()


def test_a_sender_that_vanishes_leaves_nothing(tmp_path, write_slice, open_spool, listening):
    path = write_slice(tmp_path / "a", np.zeros((512, 512), np.uint16))
    spool = open_spool()
    with listening(spool) as (port, _):
        association = sender(port)
        raw = association.dul.socket.socket
        context = association.accepted_contexts[0].context_id
        data = b"\x00" + path.read_bytes()[:10_000]
        item = struct.pack(">LB", len(data) + 1, context) + data
        raw.sendall(struct.pack(">BBL", 4, 0, len(item)) + item)
        raw.shutdown(socket.SHUT_RDWR)
        association.abort()
        raw.close()
        assert send(port, path) == [0]
    assert len(list(spool.folder.iterdir())) == 1


def test_an_address_that_is_taken_is_a_clear_error(open_spool, listening):
    spool = open_spool()
    with (
        listening(spool) as (port, _),
        pytest.raises(ListenerError, match=r"importer\.listen: cannot listen.*port"),
    ):
        Listener(ListenSettings(callers=("A",), port=port), spool, salt=b"", note=events.note)


@pytest.fixture
def process(tmp_path, free_port, collected):
    """``site-agent import listen`` on a home whose spool is its folder ``spool``."""
    home = tmp_path / "home"
    enrol(home=home, name="site-a", aggregator="localhost:1", images=home / "spool")
    settings = home / "site.toml"
    settings.write_text(
        settings.read_text() + f'\n[importer.listen]\ncallers = ["PACS"]\nport = {free_port}\n'
    )
    command = [sys.executable, "-m", "site_agent.cli", "import", "listen", "--home", str(home)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        try:
            assert json.loads(running.stdout.readline())["event"] == "importer ready"
            yield running
        finally:
            running.kill()


@pytest.mark.filterwarnings("ignore:Invalid value for VR TM:UserWarning")
def test_the_command_listens_and_stops(tmp_path, write_slice, free_port, process):
    # An identifier that pydicom and pynetdicom warn of, value and all.
    path = write_slice(tmp_path / "a", PatientName="CANARY^JANE", SeriesTime="CANARY")
    assert send(free_port, path) == [0]
    process.terminate()
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 0
    assert '"stored": 1' in output
    assert "CANARY" not in output
    assert len(list((tmp_path / "home" / "spool").iterdir())) == 1


def test_a_kill_in_mid_transfer_leaves_whole_objects_alone(
    tmp_path, write_slice, free_port, process
):
    path = write_slice(tmp_path / "a", np.zeros((64, 64), np.uint16))
    assert send(free_port, path) == [0]
    association = sender(free_port)
    raw = association.dul.socket.socket
    data = b"\x00" + b"x" * 10_000
    item = struct.pack(">LB", len(data) + 1, association.accepted_contexts[0].context_id) + data
    raw.sendall(struct.pack(">BBL", 4, 0, len(item)) + item)
    process.kill()
    process.wait(30)
    association.abort()
    raw.close()
    (received,) = (tmp_path / "home" / "spool").iterdir()
    assert dcmread(received) == dcmread(path)


def test_the_importer_loads_no_way_to_the_aggregator():
    script = (
        "import sys, site_agent.importer.cli, site_agent.importer.listener\n"
        "import site_agent.importer.dicomweb\n"
        "sys.exit(str({'flwr', 'grpc', 'torch', 'site_agent.supernode'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.stderr.strip() == b""
