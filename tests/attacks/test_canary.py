"""A study with a canary in every place where an identifier can be; nothing of it leaves its folder.

All canaries share a beginning, so that it is enough to look for that in every spelling; of hashes
each one's is looked for. What is searched is all that a site writes and says: its home, what its
commands print while they succeed and fail, and every answer before Flower wraps it.
"""

import base64
import hashlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydicom import Dataset
from pydicom.datadict import DicomDictionary
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE

from aggregator.api import create_app
from aggregator.federation import federate
from aggregator.home import create_home
from aggregator.launch import publish
from aggregator.runs import prepare_run
from shared.architectures import Residual
from shared.contract import Anchor, Probes, RunContract
from shared.mandate import sign_contract
from shared.messages import Message, StatusQueryHeader, encode, probe_batch
from shared.tasks.settings import CtDenoise
from shared.trajectory import start
from site_agent.frames import call
from site_agent.policy_file import name_coordinators

with warnings.catch_warnings():
    # Starlette's test client warns on import of what it imports itself.
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

LETTERS, DIGITS = "QZKXWVJY", "70919293949"
"""What all canaries begin with: text in capitals, numbers of UIDs."""
TEXT = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
NEEDED = {
    "ImageType",
    "Modality",
    "PhotometricInterpretation",
    "RescaleType",
    "SpecificCharacterSet",
    "BurnedInAnnotation",
    "LossyImageCompression",
}
"""Elements that say how a file is read: with a canary in them it is another file."""
TINY = Residual(depth=2, width=4)
CONTRACT = RunContract(
    name="tiny",
    task=CtDenoise(size_px=32, angles=30, bins=48),
    student=TINY,
    anchor_network=TINY,
    anchor=Anchor(rounds=1, local_steps=2, batch=2, crop_px=16),
    probes=Probes(requests=2, draws=1, depths=(0,)),
)


@dataclass
class Aviary:
    """The canaries that were handed out."""

    birds: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Sixteen letters and digits, in capitals."""
        return self._kept(LETTERS + secrets.token_hex(4).upper())

    def uid(self) -> str:
        """A UID one of whose numbers is a canary."""
        return "1.2.826.0.1." + self._kept(DIGITS + f"{secrets.randbelow(10**5):05d}")

    def _kept(self, bird: str) -> str:
        assert len(bird) == 16
        self.birds.append(bird)
        return bird


def spellings(beginning: str) -> dict[str, bytes]:
    """What an encoder makes of anything that begins so."""
    raw = beginning.encode()
    found = {
        "raw": raw,
        "lower": raw.lower(),
        "utf-16-le": beginning.encode("utf-16-le"),
        "utf-16-be": beginning.encode("utf-16-be"),
        "hex": raw.hex().encode(),
        "HEX": raw.hex().upper().encode(),
    }
    for case in (raw, raw.lower()):
        for offset in range(3):
            # Of what lies across other bytes, the middle alone is always the same.
            coded = base64.b64encode(b"\0" * offset + case)
            whole = 4 * ((offset + len(case)) // 3)
            found[f"base64 {case[:1]!r} +{offset}"] = coded[4 if offset else 0 : whole]
    return found


def hits(content: bytes, birds: list[str]) -> list[str]:
    """How canaries are in ``content``: the names of the spellings, hashes and deflated streams."""
    found = []
    for beginning in (LETTERS, DIGITS):
        found += [name for name, form in spellings(beginning).items() if form in content]
    hexadecimal = {
        window
        for run in re.findall(rb"[0-9a-fA-F]{32,}", content)
        for size in (32, 40, 64)
        for window in (run[at : at + size].lower().decode() for at in range(len(run) - size + 1))
    }
    for bird in birds:
        for spelt in (bird, bird.lower()):
            for name in ("md5", "sha1", "sha256"):
                digest = hashlib.new(name, spelt.encode())
                if digest.hexdigest() in hexadecimal or digest.digest() in content:
                    found.append(name)
    return found + [f"deflated {name}" for part in inflated(content) for name in hits(part, birds)]


def inflated(content: bytes) -> Iterator[bytes]:
    """What zlib and gzip streams anywhere in ``content`` hold."""
    for begin in re.finditer(rb"\x78[\x01\x5e\x9c\xda]|\x1f\x8b\x08", content):
        stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        try:
            part = stream.decompress(content[begin.start() :], 2**20)
        except zlib.error:
            continue
        if len(part) >= len(DIGITS):
            yield part


@pytest.mark.parametrize("form", ["raw", "lower", "utf-16", "base64", "hex", "deflated", "hash"])
def test_a_planted_leak_is_found_however_it_is_spelt(form: str) -> None:
    aviary = Aviary()
    bird = aviary.text()
    noise = secrets.token_bytes(5000)
    leaks = {
        "raw": [bird.encode()],
        "lower": [bird.lower().encode()],
        "utf-16": [bird.encode("utf-16-le"), bird.encode("utf-16-be")],
        "base64": [base64.b64encode(b"abc"[:n] + bird.encode() + b"z") for n in range(3)],
        "hex": [bird.encode().hex().encode(), bird.encode().hex().upper().encode()],
        "deflated": [zlib.compress(b"patient " + bird.encode())],
        "hash": [
            hashlib.md5(bird.encode()).digest(),
            hashlib.sha1(bird.encode()).hexdigest().encode(),
            hashlib.sha256(bird.lower().encode()).hexdigest().upper().encode(),
        ],
    }
    assert hits(noise, aviary.birds) == []
    for leak in leaks[form]:
        assert hits(noise + leak + noise, aviary.birds)


def canaried(aviary: Aviary, patient: str, position: float) -> Dataset:
    """A CT slice with a canary in every element of text, nested and private ones too."""
    dataset = Dataset()
    for tag, (vr, multiplicity, _, retired, keyword) in DicomDictionary.items():
        group = tag >> 16
        if vr not in TEXT | {"UI"} or retired or keyword in NEEDED or group not in range(8, 0x54):
            continue
        if multiplicity.startswith(("1", "0")):
            value = aviary.uid() if vr == "UI" else aviary.text()
            dataset.add_new(tag, vr, value)
    nested = Dataset()
    nested.RequestedProcedureDescription = aviary.text()
    nested.CodeMeaning = aviary.text()
    deeper = Dataset()
    deeper.PatientName = aviary.text()
    nested.ReferencedPatientSequence = [deeper]
    dataset.RequestAttributesSequence = [nested]
    block = dataset.private_block(0x0011, aviary.text(), create=True)
    block.add_new(0x01, "LO", aviary.text())
    block.add_new(0x02, "UT", aviary.text())
    block.add_new(0x03, "UN", aviary.text().encode())
    dataset.SOPClassUID = CTImageStorage
    dataset.Modality = "CT"
    dataset.PatientID = patient
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", aviary.text()]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [0, 0, position]
    dataset.PixelSpacing = [9.0, 9.0]
    dataset.SliceThickness = 3.0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows = dataset.Columns = 32
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    pixels = np.random.default_rng(int(position)).integers(0, 1500, (32, 32)).astype(np.uint16)
    burned = np.frombuffer(aviary.text().encode(), np.uint8)
    pixels[0, : len(burned)] = burned
    pixels[1, :8] = burned.view("<u2")  # as its bytes lie in the file
    dataset.PixelData = pixels.tobytes()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationVersionName = aviary.text()
    dataset.file_meta = meta
    return dataset


def write_study(folder: Path, aviary: Aviary) -> None:
    """Patients who are accepted, and files that fail in all the ways that repeat what they say."""
    good: list[Path] = []
    for number in range(6):
        patient, place = aviary.text(), folder / aviary.text()
        place.mkdir(parents=True)
        for at in range(2):
            file = place / f"{aviary.text()}.dcm"
            saved(canaried(aviary, patient, 10.0 * number + 3 * at), file)
            good.append(file)
    bad = folder / aviary.text()
    bad.mkdir()

    def variant(name: str) -> Path:
        return bad / f"{name}-{aviary.text()}.dcm"

    whole = good[0].read_bytes()
    variant("truncated").write_bytes(whole[: len(whole) // 2])
    variant("cut-pixels").write_bytes(whole[:-700])
    variant("text").write_text(f"{aviary.text()}, born 1950\n")
    variant("empty").write_bytes(b"")
    for change in (
        {"BurnedInAnnotation": "YES"},
        {"Modality": "US"},
        {"PhotometricInterpretation": "RGB"},
        {"SOPClassUID": SecondaryCaptureImageStorage},
        {"ImagePositionPatient": None},
        {"RescaleType": aviary.text()},
        {"Modality": aviary.text()},
        {"PhotometricInterpretation": aviary.text()},
    ):
        dataset = canaried(aviary, aviary.text(), 500.0)
        for keyword, value in change.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        saved(dataset, variant("changed"))
    # Values that pydicom warns of, or raises on, in words that repeat them.
    for keyword in ("SliceThickness", "PixelSpacing", "RescaleSlope", "ImagePositionPatient"):
        dataset = canaried(aviary, aviary.text(), 600.0)
        del dataset[keyword]
        file = variant("value")
        saved(dataset, file)
        marked = pydicom.dcmread(file)
        tag = pydicom.datadict.tag_for_keyword(keyword)
        assert tag is not None
        marked.add_new(tag, "LO", aviary.text())
        saved(marked, file)
        content = file.read_bytes()
        element = tag.to_bytes(4, "big")
        at = content.index(bytes((element[1], element[0], element[3], element[2])) + b"LO")
        file.write_bytes(content[: at + 4] + b"DS" + content[at + 6 :])
    syntax = variant("syntax")
    odd = canaried(aviary, aviary.text(), 700.0)
    saved(odd, syntax)
    syntax.write_bytes(
        syntax.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0", 1)
    )
    image = SimpleITK.GetImageFromArray(np.zeros((2, 32, 32), np.int16))
    image.SetMetaData("descrip", aviary.text())
    SimpleITK.WriteImage(image, str(bad / f"{aviary.text()}.nii.gz"))
    (bad / f"{aviary.text()}.nii").write_bytes(aviary.text().encode() * 40)


def saved(dataset: Dataset, file: Path) -> None:
    dataset.save_as(file, enforce_file_format=True)


@contextmanager
def worker(home: Path, log: Path) -> Iterator[None]:
    """The site's worker, whose standard output and error go into ``log``."""
    command = [sys.executable, "-m", "site_agent.cli", "worker", "--home", str(home)]
    with running(command, log, ready=b"worker ready"):
        yield


@contextmanager
def running(command: Sequence[str], log: Path, *, ready: bytes) -> Iterator[None]:
    """A process that has said it is ``ready``; what it says goes into ``log``."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "FEDSTILL_THREADS": "1"},
        )
    try:
        deadline = time.monotonic() + 90
        while ready not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(20)


def imported(home: Path, root: Path, study: Path, aviary: Aviary) -> dict[str, bytes]:
    """What the importer's process says and leaves, but for the objects that it is there to keep.

    Objects come, one comes twice; a sender is refused that calls itself by a canary.
    """
    spool, log = root / "spool", root / "importer.out"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with (home / "site.toml").open("a") as file:
        file.write(f"[importer]\nspool = {json.dumps(str(spool))}\n")
        file.write(f'[importer.listen]\ncallers = ["PACS"]\nport = {port}\n')
    good = [file for file in sorted(study.rglob("*.dcm")) if "-" not in file.name][:3]
    command = [sys.executable, "-m", "site_agent.cli", "import", "listen", "--home", str(home)]
    with running(command, log, ready=b"importer ready"):
        for caller in ("PACS", aviary.text()):
            entity = AE(ae_title=caller)
            entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
            association = entity.associate("127.0.0.1", port, ae_title="FEDSTILL")
            assert association.is_established == (caller == "PACS")
            if association.is_established:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of values that are canaries
                    statuses = [association.send_c_store(one).Status for one in (*good, good[0])]
                assert statuses == [0] * 4
                association.release()
        deadline = time.monotonic() + 20
        while not all(word in log.read_bytes() for word in (b"objects received", b"refused")):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
    kept = sorted(spool.rglob("*"))
    assert sum(b"DICM" in file.read_bytes()[128:132] for file in kept) == 3
    told = {"importer": log.read_bytes(), "names in the spool": "\n".join(map(str, kept)).encode()}
    for file in kept:
        content = file.read_bytes()
        # Of an object what lies before its own: the preamble.
        told[f"spool: {file.name}"] = content[:128] if content[128:132] == b"DICM" else content
    return told


COORDINATOR = Ed25519PrivateKey.from_private_bytes(b"c" * 32)


def requests() -> dict[str, bytes]:
    """Requests that are answered, and ones that fail: each brings something out of the worker."""

    def asked(contract: RunContract, **changed: Any) -> bytes:
        kind = changed.pop("kind", "gradients")
        network = "anchor" if kind == "local-steps" else "student"
        number = 1 if kind == "local-steps" else 2
        weights = start(contract, kind=kind, network=network, round=number).numpy()[None]
        return encode(
            probe_batch(
                contract=contract,
                round=number,
                kind=kind,
                network=network,
                weights=changed.get("weights", weights),
                mandate=sign_contract(contract.digest(), COORDINATOR),
            )
        )

    many = CONTRACT.model_copy(update={"min_patients": 5000})
    return {
        "status": encode(Message(header=StatusQueryHeader())),
        "descent": asked(CONTRACT, kind="local-steps"),
        "gradients": asked(CONTRACT),
        "refused: too few": asked(many),
        "refused: patient": asked(CONTRACT.model_copy(update={"granularity": "patient"})),
        "refused: weights": asked(CONTRACT, weights=np.full((1, 7), 1e6, np.float32)),
        "malformed": b"\0" * 300,
    }


def federation(home: Path, root: Path) -> dict[str, bytes]:
    """A whole run over the worker's socket: each message before Flower wraps it, and what is made.

    Of the aggregator all of its home, the release's blobs and the catalog with them, and what the
    release API answers.
    """
    few = {
        "anchor": CONTRACT.anchor.model_copy(update={"public_steps": 4}),
        "probes": CONTRACT.probes.model_copy(update={"steps": 2}),
    }
    contract = CONTRACT.model_copy(update={"seed": 7, "images": 2, **few})
    made, said = create_home(root, {}), {}

    def exchange(payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
        answer = call(home / "worker.sock", payload, timeout_s=120)
        said[f"federation: request {round}"] = payload
        said[f"federation: summary {round}"] = answer
        return dict.fromkeys(sites, answer)

    run = prepare_run(made, contract, sites=["site-a"], public=None)
    mandate = sign_contract(contract.digest(), COORDINATOR)
    federate(contract=contract, sites=["site-a"], exchange=exchange, run=run, mandate=mandate)
    assert publish(made, run, contract)["version"] == 1
    with TestClient(create_app(root)) as client:
        pages = [f"/v1/datasets/{CONTRACT.name}", "/v1/datasets", "/"]
        for page in pages:
            said[f"federation: GET {page}"] = client.get(page).content
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        said[f"federation: {file.relative_to(root)}"] = file.read_bytes()
    return said


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_nothing_of_a_studys_identifiers_leaves_its_folder(tmp_path: Path) -> None:
    aviary, home, study = Aviary(), tmp_path / "home", tmp_path / "study"
    write_study(study, aviary)
    told: dict[str, bytes] = {}

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "site_agent.cli", *command],
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONWARNINGS": "always", "COLUMNS": "300"},
        )
        told[f"{len(told)}: {command[0]}"] = done.stdout + done.stderr
        return done.stdout.decode()

    run(
        *("init", "--home", str(home), "--name", "site-a"),
        *("--aggregator", "localhost:1", "--images", str(study)),
    )
    name_coordinators(home, [COORDINATOR.public_key().public_bytes_raw().hex()])
    counted = json.loads(run("index", "--home", str(home), "--json"))
    assert counted["patients"] == 6
    assert sum(counted["skipped"].values()) >= 15
    run("index", "--home", str(home))
    with worker(home, tmp_path / "worker.out"):
        for name, payload in requests().items():
            told[f"answer to {name}"] = call(home / "worker.sock", payload, timeout_s=120)
        run("status", "--home", str(home))
        run("preflight", "--home", str(home), "--part", "worker", "--json")
        told.update(federation(home, tmp_path / "aggregator"))
    run("budget", "--home", str(home), "--json")
    for command in ("budget", "policy", "audit show", "audit verify", "outbox"):
        run(*command.split(), "--home", str(home))
    run("report", "--home", str(home))  # the page lies in the home, which is searched below
    reported = json.loads(run("report", "--home", str(home), "--json"))
    # Every DICOM file's maker and kernel is a canary; the volume names none.
    for free_text in ("makers", "kernels"):
        counts = reported["inventory"][free_text]
        assert set(counts) == {"other", "not said"}
        assert counts["other"] >= 6
    told.update(imported(home, tmp_path, study, aviary))
    run("kernel-fit", "--sharp", str(study), "--soft", str(study))
    told["worker"] = (tmp_path / "worker.out").read_bytes()
    for file in sorted(path for path in home.rglob("*") if path.is_file()):
        told[str(file.relative_to(home))] = file.read_bytes()
        told[f"name of {file.relative_to(home)}"] = str(file.relative_to(home)).encode()
    assert b"not-an-image" in told["report.html"]
    assert b"summary" in told["answer to descent"]
    assert b"summary" in told["answer to gradients"]
    assert "federation: summary 3" in told and b"ledger" in told["name of ledger/ledger.sqlite"]
    assert b"objects received" in told["importer"]
    assert len(told) > 50
    assert len(aviary.birds) > 1000
    found = {name: hits(content, aviary.birds) for name, content in told.items()}
    assert {name: how for name, how in found.items() if how} == {}
    # The control: one bird planted in any of them is found.
    for content in told.values():
        assert hits(content[-4096:] + zlib.compress(aviary.birds[0].encode() * 2), [])
    # And the same search finds it in the study itself.
    assert all(hits(file.read_bytes()[:4096], []) for file in sorted(study.rglob("*Q*.dcm"))[:4])
