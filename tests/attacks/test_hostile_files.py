"""Files made to break their reader: each ends with a code, in time, and touches nobody else's."""

import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pydicom.data
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydicom.uid import AllTransferSyntaxes, UID_dictionary

from shared.architectures import Residual
from shared.contract import Anchor, Probes, RunContract
from shared.mandate import sign_contract
from shared.messages import decode, encode, probe_batch
from shared.tasks.settings import CtDenoise
from shared.trajectory import start
from site_agent.enrolment import enrol
from site_agent.frames import call
from site_agent.intake.folder import read_folder
from site_agent.intake.pool import Limits, ReaderPool
from site_agent.intake.reasons import IntakeReport, SkipReason
from site_agent.policy_file import name_coordinators

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
DEFLATED, BIG = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
JPEG_2000, RLE = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5"
LONG = ("OB", "OW", "SQ", "UN", "UT")
EDGE = 32
WITHIN_S = 20.0

HEADER = {
    0x00080008: ("CS", b"ORIGINAL\\PRIMARY\\AXIAL"),
    0x00080016: ("UI", b"1.2.840.10008.5.1.4.1.1.2"),
    0x00080018: ("UI", b"1.2.3.4"),
    0x00080060: ("CS", b"CT"),
    0x00100020: ("LO", b"HOSTILE"),
    0x00180050: ("DS", b"2.0"),
    0x0020000E: ("UI", b"1.2.3"),
    0x00200032: ("DS", b"0\\0\\0"),
    0x00200037: ("DS", b"1\\0\\0\\0\\1\\0"),
    0x00280002: ("US", struct.pack("<H", 1)),
    0x00280004: ("CS", b"MONOCHROME2"),
    0x00280008: ("IS", b"1"),
    0x00280010: ("US", struct.pack("<H", EDGE)),
    0x00280011: ("US", struct.pack("<H", EDGE)),
    0x00280030: ("DS", b"1\\1"),
    0x00280100: ("US", struct.pack("<H", 16)),
    0x00280101: ("US", struct.pack("<H", 16)),
    0x00280102: ("US", struct.pack("<H", 15)),
    0x00280103: ("US", struct.pack("<H", 0)),
    0x00281052: ("DS", b"-1024"),
    0x00281053: ("DS", b"1"),
}
PIXELS = 0x7FE00010
NATIVE = {PIXELS: ("OW", bytes(2 * EDGE * EDGE))}


def element(tag, vr, value, length=None):
    value += b"\0" * (len(value) % 2)
    length = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    size = struct.pack("<HI", 0, length) if vr in LONG else struct.pack("<H", length)
    return head + size + value


def part10(body, syntax=EXPLICIT):
    meta = element(0x00020010, "UI", syntax.encode())
    group = element(0x00020000, "UL", struct.pack("<I", len(meta)))
    return bytes(128) + b"DICM" + group + meta + body


def dataset(changes=None, *, pixels=None, extra=b""):
    elements = {**HEADER, **(changes or {})}
    body = b"".join(
        element(tag, *value) for tag, value in sorted(elements.items()) if value is not None
    )
    return body + extra + (element(PIXELS, *NATIVE[PIXELS]) if pixels is None else pixels)


def deflated(body):
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return part10(stream.compress(body) + stream.flush(), DEFLATED)


def encapsulated(*fragments, end=True):
    items = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(one)) + one for one in fragments)
    closing = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0) if end else b""
    return element(PIXELS, "OB", b"", 0xFFFFFFFF) + items + closing


def nested(depth):
    inner = b""
    for _ in range(depth):
        item = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
        inner = element(0x00081140, "SQ", item)
    return inner


def volume(*, sizes=(16, 16, 4), code=4, bits=16, offset=352.0, slope=1.0, magic=b"n+1\0"):
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, len(sizes), *sizes, *[1] * (7 - len(sizes)))
    struct.pack_into("<hh", header, 70, code, bits)
    struct.pack_into("<8f", header, 76, *[1.0] * 8)
    struct.pack_into("<3f", header, 108, offset, slope, 0.0)
    struct.pack_into("<h", header, 254, 1)
    for row in range(3):
        struct.pack_into("<f", header, 280 + 20 * row, 1.0)
    header[344:348] = magic
    return bytes(header) + bytes(2 * 16 * 16 * 4)


def crafted():
    """Name and content of each file; some would be good, had nobody touched them."""
    good = part10(dataset())
    files = {f"cut-{n}": good[: n * len(good) // 40] for n in range(40)}
    for syntax in [*AllTransferSyntaxes, "1.2.3", "", "x" * 64, EXPLICIT + "\0\0"]:
        files[f"syntax-{len(files)}"] = part10(dataset(), str(syntax))
    classes = [uid for uid, entry in UID_dictionary.items() if "SOP Class" in entry[1]]
    for number, uid in enumerate(classes[:: len(classes) // 30]):
        files[f"class-{number}"] = part10(dataset({0x00080016: ("UI", uid.encode())}))
    numbers = [
        b"nan",
        b"inf",
        b"-1e308",
        b"1e400",
        b"0",
        b"-1",
        b"abc",
        b"9" * 64,
        b"\xff\xfe",
        b"",
    ]
    for tag in (0x00180050, 0x00200032, 0x00200037, 0x00280030, 0x00281052, 0x00281053):
        several = {0x00200032: 3, 0x00200037: 6, 0x00280030: 2}.get(tag, 1)
        for value in numbers:
            many = b"\\".join([value] * several)
            files[f"number-{tag:08x}-{len(files)}"] = part10(dataset({tag: ("DS", many)}))
    for tag in (0x00280002, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280103):
        for value in (0, 1, 3, 8, 17, 64, 4097, 65535):
            changes = {tag: ("US", struct.pack("<H", value))}
            files[f"edge-{tag:08x}-{value}"] = part10(dataset(changes))
    for value in (b"0", b"-1", b"2", b"2147483647", b"abc", b"1e9"):
        files[f"frames-{len(files)}"] = part10(dataset({0x00280008: ("IS", value)}))
    for tag in HEADER:
        files[f"without-{tag:08x}"] = part10(dataset({tag: None}))
    enhanced = {0x00080016: ("UI", b"1.2.840.10008.5.1.4.1.1.2.1")}
    many_frames = {**enhanced, 0x00280008: ("IS", b"8000")}
    files |= {
        "enhanced-without-groups": part10(dataset(enhanced)),
        "enhanced-without-pixels": part10(dataset(many_frames)),
        "bomb-deflated": deflated(dataset(extra=element(0x7FDF0010, "OB", bytes(2**29)))),
        "cut-deflated": deflated(dataset())[:-40],
        "noise-deflated": part10(os.urandom(4096), DEFLATED),
        "nested-200": part10(dataset(extra=nested(200))),
        "nested-5000": part10(nested(5000) + dataset()),
        "length-fffffff0": part10(dataset(pixels=element(PIXELS, "OW", bytes(2048), 0xFFFFFFF0))),
        "length-undefined": part10(dataset(pixels=element(PIXELS, "OW", bytes(2048), 2**32 - 1))),
        "length-too-small": part10(dataset(pixels=element(PIXELS, "OW", bytes(2048), 2046))),
        "long-before": part10(element(0x00080005, "UT", b"", 0x7FFFFFFF) + dataset()),
        "many-elements": part10(element(0x00090010, "LO", b"x") * 300_000 + dataset()),
        "no-fragments": part10(dataset(pixels=encapsulated()), JPEG_2000),
        "empty-fragment": part10(dataset(pixels=encapsulated(b"", b"")), JPEG_2000),
        "long-fragment": part10(
            dataset(pixels=encapsulated(b"", b"xx")).replace(b"\2\0\0\0xx", b"\xf0\xff\xff\x7fxx"),
            JPEG_2000,
        ),
        "noise-jpeg-2000": part10(dataset(pixels=encapsulated(b"", os.urandom(999))), JPEG_2000),
        "huge-jpeg-2000": part10(dataset(pixels=encapsulated(b"", _vast_codestream())), JPEG_2000),
        "noise-rle": part10(dataset(pixels=encapsulated(b"", os.urandom(1000))), RLE),
        "bomb-rle": part10(
            dataset(
                pixels=encapsulated(b"", struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * 9**6)
            ),
            RLE,
        ),
        "volume-cut.nii": volume()[:-9],
        "volume-vast.nii": volume(sizes=(32767, 32767, 32767)),
        "volume-negative.nii": volume(sizes=(-5, 16, 4)),
        "volume-zero.nii": volume(sizes=(0, 16, 4)),
        "volume-type.nii": volume(code=99),
        "volume-bits.nii": volume(bits=32767),
        "volume-offset.nii": volume(offset=1e30),
        "volume-before.nii": volume(offset=-1e30),
        "volume-scaled.nii": volume(slope=float("nan")),
        "volume-magic.nii": volume(magic=b"\xff" * 4),
        "volume-flat.nii": volume(sizes=(16, 16)),
        "volume-noise.nii.gz": os.urandom(999),
        "volume-bomb.nii.gz": gzip.compress(volume() + bytes(2**28)),
        "volume-sum.nii.gz": gzip.compress(volume())[:-8] + b"\0" * 8,
    }
    return files


def _vast_codestream():
    """A JPEG 2000 header of 60000 by 60000 pixels in one tile."""
    size = struct.pack(">HIIIIIIIIH", 0, 60000, 60000, 0, 0, 60000, 60000, 0, 0, 1) + b"\x0f\1\1"
    coding = b"\0\0\0\1\0\5\4\4\0\1"
    step = b"\x40" + b"\x88" * 16
    markers = ((0xFF51, size), (0xFF52, coding), (0xFF5C, step))
    body = b"".join(struct.pack(">HH", mark, len(text) + 2) + text for mark, text in markers)
    return b"\xff\x4f" + body + struct.pack(">HHHIBB", 0xFF90, 10, 0, 0, 0, 1) + b"\xff\x93\xff\xd9"


def outcomes(paths, *, modality="CT", limits=None):
    """The code of each file ("" where its first slice was read too), and the longest time taken."""
    ended, longest = [], 0.0
    with ReaderPool(readers=1, limits=limits) as pool:

        def ask(job):
            nonlocal longest
            began = time.monotonic()
            (answer,) = pool.answers([job], batch=1)
            longest = max(longest, time.monotonic() - began)
            for reader in list(pool._idle.queue):
                status = Path(f"/proc/{reader._process.pid}/status").read_text()
                peak = int(status.split("VmHWM:")[1].split()[0])
                assert peak < 2**20, "a reader held more than 1 GiB (in KiB)"
            return answer

        for path in paths:
            answer = ask(
                {"ask": "header", "path": str(path), "modality": modality, "sequence": None}
            )
            if answer.code is None:
                source = answer.fields.get("volume") or answer.fields["slices"][0]
                job = {"ask": "pixels", "path": str(path), "source": source, "chosen": [0]}
                answer = ask({**job, "modality": modality, "step": 1, "full": None})
            ended.append("" if answer.code is None else answer.code.value)
    return ended, longest


def write_good(folder, patients=range(3)):
    for number in patients:
        for z in range(4):
            stored = np.random.default_rng(10 * number + z).integers(0, 2000, EDGE**2, np.uint16)
            named = {
                0x00080018: ("UI", f"1.9.{number}.{z}".encode()),
                0x00100020: ("LO", f"GOOD{number}".encode()),
                0x00200032: ("DS", f"0\\0\\{z}".encode()),
            }
            content = part10(dataset(named, pixels=element(PIXELS, "OW", stored.tobytes())))
            (folder / f"good-{number}-{z}").write_bytes(content)


def read(folder):
    report = IntakeReport()
    found = read_folder(
        folder,
        pseudonym_key=b"key",
        slices_per_patient=1000,
        report=report,
        modality="CT",
        readers=1,
    )
    return {one.pseudonym: [item.pixels for item in one.slices] for one in found}, report


@pytest.mark.slow
def test_crafted_files_end_with_a_code_and_leave_other_patients_alone(tmp_path):
    write_good(tmp_path)
    alone, _ = read(tmp_path)
    assert [len(planes) for planes in alone.values()] == [4, 4, 4]
    files = crafted()
    assert len(files) >= 150
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    ended, longest = outcomes([tmp_path / name for name in files])
    assert len(ended) == len(files)
    assert longest < WITHIN_S
    by_name = dict(zip(files, ended, strict=True))
    kinds = Counter(ended)
    assert kinds["crashed"] == kinds["too-slow"] == 0
    assert len(kinds) >= 15, kinds
    assert by_name["bomb-deflated"] == "too-large"
    assert by_name["length-fffffff0"] == "truncated"
    assert by_name["huge-jpeg-2000"] in ("undecodable", "too-much-memory")
    assert by_name["volume-sum.nii.gz"] in ("unreadable", "truncated")
    together, report = read(tmp_path)
    assert set(report.skipped) <= set(SkipReason)
    volumes = 4 * sum(one == "" for name, one in by_name.items() if ".nii" in name)
    assert report.slices + sum(report.skipped.values()) + report.not_needed >= report.files
    assert report.files == len(files) + 12 and volumes >= 0
    for name, planes in alone.items():
        assert all(np.array_equal(a, b) for a, b in zip(planes, together[name], strict=True))


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "nowhere.nii").symlink_to(tmp_path / "absent")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    _, report = read(tmp_path)
    assert report.skipped == {SkipReason.NOT_AN_IMAGE: 2, SkipReason.UNREADABLE: 2}
    assert outcomes([tmp_path / "pipe", tmp_path / "zero"])[0] == ["not-an-image"] * 2


def test_a_reader_above_its_limits_is_replaced_and_the_next_file_is_read(tmp_path):
    good = tmp_path / "good"
    good.write_bytes(part10(dataset()))
    slow, vast = tmp_path / "slow", tmp_path / "vast"
    slow.write_bytes(part10(element(0x00090010, "LO", b"x") * 3_000_000 + dataset()))
    vast.write_bytes(deflated(dataset(extra=element(0x7FDF0010, "OB", bytes(150 * 2**20)))))
    # The control: without a limit within reach both are read to the end.
    free, _ = outcomes([slow, vast], limits=Limits(wall_s=100, cpu_s=100))
    assert not {"too-slow", "too-much-memory"} & set(free)
    tight = Limits(wall_s=30, cpu_s=1, memory_bytes=500 * 2**20)
    assert outcomes([good, slow, good], limits=tight)[0] == ["", "too-slow", ""]
    tight = Limits(memory_bytes=420 * 2**20)
    assert outcomes([good, vast, good], limits=tight)[0] == ["", "too-much-memory", ""]
    hasty = Limits(wall_s=0.5, cpu_s=100)
    assert outcomes([good, slow, good], limits=hasty)[0] == ["", "too-slow", ""]


def mutated(content, generator):
    """Bytes flipped, cut, doubled or filled, where a header or a length is likeliest hit."""
    changed = bytearray(content)
    for _ in range(generator.integers(1, 6)):
        reach = len(changed) if generator.random() < 0.5 else min(len(changed), 2000)
        place = int(generator.integers(0, max(reach, 1)))
        span = int(generator.integers(1, 40))
        match generator.integers(0, 5):
            case 0 | 1:
                for _ in range(3):
                    at = int(generator.integers(0, max(reach, 1)))
                    changed[at : at + 1] = bytes([int(generator.integers(0, 256))])
            case 2:
                del changed[place : place + span]
            case 3:
                changed[place:place] = changed[place : place + span]
            case 4:
                changed[place : place + 4] = bytes([int(generator.choice([0, 127, 255]))]) * 4
    return bytes(changed if generator.random() < 0.9 else changed[: len(changed) // 2])


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_mutated_files_end_with_a_code(tmp_path, modality):
    folder = Path(pydicom.data.__file__).parent
    seeds = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    seeds = [path for path in seeds if path.suffix == ".dcm" and path.stat().st_size < 300_000]
    own = [path for path in seeds if path.name.startswith(f"{modality}_small")]
    assert len(seeds) > 60 and own
    generator = np.random.default_rng(5)
    paths = []
    for number in range(1000):
        some = own if number % 2 else seeds
        path = tmp_path / str(number)
        path.write_bytes(mutated(some[number // 2 % len(some)].read_bytes(), generator))
        paths.append(path)
    ended, longest = outcomes(paths, modality=modality)
    assert len(ended) == 1000
    assert set(ended) <= {"", *SkipReason}
    assert longest < WITHIN_S
    # The seeds are read where they are whole, so that the mutations reach further than a preamble.
    assert "" in outcomes(own, modality=modality)[0]
    assert len(set(ended)) >= 6, Counter(ended)


CONTRACT = RunContract(
    name="hostile",
    granularity="patient",
    min_patients=2,
    task=CtDenoise(size_px=32, angles=30, bins=48),
    student=Residual(depth=2, width=4),
    anchor_network=Residual(depth=2, width=4),
    anchor=Anchor(rounds=0, crop_px=16),
    probes=Probes(requests=16, draws=1, depths=(0,)),
)
ROUNDS = CONTRACT.rounds
POLICY = 'min_patients = 2\ngranularities = ["patient"]\n'


def request(round, coordinator):
    weights = start(CONTRACT, kind="gradients", network="student", round=round).numpy()[None]
    mandate = sign_contract(CONTRACT.digest(), coordinator)
    return encode(
        probe_batch(
            contract=CONTRACT,
            round=round,
            kind="gradients",
            network="student",
            weights=weights,
            mandate=mandate,
        )
    )


def site(command, home, output):
    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "site_agent.cli", *command, "--home", str(home)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "FEDSTILL_THREADS": "1"},
        )


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_round_is_answered_while_hostile_files_are_indexed_and_gradients_are_the_same(tmp_path):
    images, home = tmp_path / "images", tmp_path / "home"
    images.mkdir()
    write_good(images)
    enrol(home=home, name="site-a", aggregator="localhost:1", images=images)
    coordinator = Ed25519PrivateKey.generate()
    (home / "policy.toml").write_text(POLICY)
    name_coordinators(home, [coordinator.public_key().public_bytes_raw().hex()])
    output = tmp_path / "output"
    assert site(["index"], home, output).wait(100) == 0, output.read_text()
    # The same site, to whose images the files are never added.
    calm = tmp_path / "calm"
    shutil.copytree(home, calm)

    def values(place, round):
        answered = decode(call(place / "worker.sock", request(round, coordinator), timeout_s=60))
        assert answered.header.type == "summary"
        return answered.arrays["values"]

    with ExitStack() as stack:
        for place in (home, calm):
            log = place.with_suffix(".out")
            worker = site(["worker"], place, log)
            stack.callback(worker.wait)
            stack.callback(worker.terminate)
            deadline = time.monotonic() + 90
            while b"worker ready" not in log.read_bytes():
                assert worker.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
        for name, content in list(crafted().items())[::2]:
            (images / name).write_bytes(content)
        write_good(images, patients=[3])
        indexing = site(["index", "--json"], home, output)
        stack.callback(indexing.wait)
        meanwhile = []
        while indexing.poll() is None:
            answered = values(home, min(len(meanwhile), ROUNDS - 2) + 1)
            if indexing.poll() is None:
                meanwhile.append(answered)
            time.sleep(0.5)
        assert indexing.returncode == 0
        while meanwhile and meanwhile[-1].shape[0] == 4:
            meanwhile.pop()  # the new cohort is in place a moment before its process has ended
        assert len(meanwhile) >= 3, "rounds were answered from its begin to its end"
        for round, answered in enumerate(meanwhile[: ROUNDS - 1], 1):
            assert answered.shape[0] == 3
            assert np.array_equal(answered, values(calm, round))
        counted = json.loads(output.read_bytes().splitlines()[-1])
        assert sum(counted["skipped"].values()) > 50
        among, alone = values(home, ROUNDS), values(calm, ROUNDS)
    assert among.shape[0] == counted["patients"] > alone.shape[0] == 3
    rows = {one.tobytes() for one in among}
    assert all(one.tobytes() in rows for one in alone), "bit for bit"
    # The control: gradients of the next round are others.
    assert not any(one.tobytes() in rows for one in meanwhile[0])
