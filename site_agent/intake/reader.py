"""A reader: the process that parses image files, one after the other, within limits.

It is started by ``intake.pool`` with a socket and an empty environment, gets frames of jobs as
JSON, and answers each job with a frame of JSON and, where it names one, an array's raw bytes. It
gives numbers, arrays and the identifiers that are hashed on arrival, or a code; never a pickle.
"""

import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from site_agent.frames import FrameError, recv_frame, send_frame
from site_agent.intake import dicom, nifti
from site_agent.intake.acquisition import Acquisition
from site_agent.intake.geometry import Plane
from site_agent.intake.placement import Placement
from site_agent.intake.reasons import Skipped, SkipReason
from site_agent.intake.scale import thousandths
from site_agent.intake.sequences import names_sequence
from site_agent.intake.strictness import as_fields

JOBS_LIMIT_BYTES = 64 * 2**20
READY = b"reader ready"

_OPEN_FILES = 64


def confine(*, memory_bytes: int) -> None:
    """Limits this process for good: address space, no file written, no core, few files open."""
    for kind, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
    ):
        resource.setrlimit(kind, (limit, limit))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us


def answered(job: dict[str, Any]) -> tuple[dict[str, Any], NDArray[np.generic] | None]:
    """What one job gives: a JSON object, and an array where pixels were asked for."""
    try:
        if job["ask"] == "header":
            return _header(job), None
        return {}, _pixels(job)
    except Skipped as skipped:
        return {"code": skipped.reason.value}, None
    except MemoryError:
        return {"code": SkipReason.TOO_MUCH_MEMORY.value}, None
    except Exception:
        # Whatever a file does to its reader is a code: the text may repeat what the file says.
        return {"code": SkipReason.UNREADABLE.value}, None


def _header(job: dict[str, Any]) -> dict[str, Any]:
    path = Path(job["path"])
    name = path.name.lower()
    if dicom.is_dicom(path):
        slices, refused = dicom.read_headers(
            path, modality=job["modality"], sequence=job["sequence"]
        )
        return {"slices": [as_fields(one) for one in slices], "refused": refused}
    if not name.endswith(nifti.SUFFIXES):
        raise Skipped(SkipReason.NOT_AN_IMAGE)
    stem = name.removesuffix(".gz").removesuffix(".nii")
    if job["sequence"] is not None and not names_sequence(stem, job["sequence"]):
        raise Skipped(SkipReason.OTHER_SEQUENCE)
    return {"volume": as_fields(nifti.read_header(path))}


def _pixels(job: dict[str, Any]) -> NDArray[np.generic]:
    """Slices (n, rows, columns): Hounsfield units, MR signal, or thousandths of a series' scale."""
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in job["source"].items()
    }
    fields["path"] = Path(job["path"])
    step, full = job["step"], job["full"]
    if "slices" in fields:
        volume = nifti.NiftiVolume(**fields)
        if job["modality"] == "CT":
            return np.stack(nifti.read_slices(volume, job["chosen"]))
        signal_ = np.stack(nifti.read_signal(volume, job["chosen"], step=step))
    else:
        fields["place"] = Placement(**fields["place"])
        fields["plane"] = Plane(**fields["plane"])
        fields["acquisition"] = Acquisition(**fields["acquisition"])
        one = dicom.DicomSlice(**fields)
        if job["modality"] == "CT":
            return dicom.read_pixels(one)[None]  # whole numbers: always finite
        signal_ = dicom.read_signal(one)[None, ::step, ::step]
    if not np.isfinite(signal_).all():
        raise Skipped(SkipReason.UNREADABLE)
    return signal_ if full is None else thousandths(signal_, full=full)


def _send(sock: socket.socket, head: dict[str, Any], array: NDArray[np.generic] | None) -> None:
    if array is None:
        send_frame(sock, json.dumps(head).encode())
        return
    kind = "<i2" if array.dtype == np.int16 else "<f4"
    raw = np.ascontiguousarray(array, kind)
    send_frame(sock, json.dumps({"dtype": kind, "shape": raw.shape}).encode())
    sock.sendall(raw.data.cast("B"))


def serve(sock: socket.socket, *, cpu_s: int) -> None:
    """Answers jobs until the parent hangs up."""
    send_frame(sock, READY)
    while True:
        try:
            jobs = json.loads(recv_frame(sock, limit=JOBS_LIMIT_BYTES))
        except FrameError:
            return
        for job in jobs:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            soft = int(usage.ru_utime + usage.ru_stime) + 1 + cpu_s
            resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))
            _send(sock, *answered(job))


def main() -> None:
    """Entry point: the socket's number, memory in bytes, seconds of CPU a file."""
    number, memory_bytes, cpu_s = (int(argument) for argument in sys.argv[1:4])
    os.umask(0o077)
    confine(memory_bytes=memory_bytes)
    try:
        serve(socket.socket(fileno=number), cpu_s=cpu_s)
    except ConnectionError:
        sys.exit(0)


if __name__ == "__main__":
    main()
