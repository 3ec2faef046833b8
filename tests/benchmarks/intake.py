"""Intake beside a bare pydicom loop over the same files: slices a second, and peak memory.

    python tests/benchmarks/intake.py FOLDER | --made 2000 [--edge 512] [--json FILE]

The bare loop is one process that reads each file with pydicom, decodes its pixels and applies its
rescale; it checks nothing and keeps nothing. Intake reads the same files to a cohort: limits,
checks, grouping, Hounsfield units, every slice written. It runs on one core, then on two, each
time in a process of its own; the loop runs before and after, and the faster run counts. Memory
is the peak of the resident set; of intake, that of the process that indexes and of its readers.

Bars: at least 0.6 of the loop on one core, above 1.0 on two.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ONE_CORE, TWO_CORES = 0.6, 1.0


def write_series(folder: Path, *, slices: int, edge: int) -> None:
    """CT slices as a scanner writes them: noise of 12 bits, with the elements of a real header."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.sequence import Sequence
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    generator = np.random.default_rng(0)
    stored = generator.integers(0, 2000, (edge, edge)).astype(np.uint16)
    series = generate_uid()
    for number in range(slices):
        one = Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = CTImageStorage
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        one.SeriesInstanceUID, one.StudyInstanceUID = f"{series}.{number // 100}", series
        one.PatientID, one.PatientName = f"P{number // 100}", "Made^Up"
        one.Modality, one.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        one.ImagePositionPatient = [0, 0, number % 100]
        one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        one.PixelSpacing, one.SliceThickness = [0.7, 0.7], 1.0
        one.RescaleSlope, one.RescaleIntercept = 1, -1024
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.Rows = one.Columns = edge
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 12, 11, 0
        for place, keyword in enumerate(
            (
                "KVP",
                "XRayTubeCurrent",
                "ExposureTime",
                "Exposure",
                "TableHeight",
                "SpiralPitchFactor",
            )
        ):
            setattr(one, keyword, 100 + place)
        for keyword in ("Manufacturer", "InstitutionName", "StationName", "ProtocolName"):
            setattr(one, keyword, "made up")
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "MADE", "made up"
        one.ProcedureCodeSequence = Sequence([code])
        for element in range(40):
            one.add_new(0x00091010 + element, "LO", "private")
        one.add_new(0x00090010, "LO", "MADE UP")
        one.PixelData = np.roll(stored, number).tobytes()
        one.save_as(folder / f"{number:06}.dcm", enforce_file_format=True)


def bare(folder: Path) -> int:
    """The loop to beat: reads, decodes and rescales each file; gives how many there were."""
    from pydicom import dcmread

    count = 0
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            one = dcmread(path)
            hu = one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept)
            count += int(hu.astype(np.int16).shape[0] > 0)
    return count


def indexed(folder: Path, readers: int) -> int:
    """Intake to a cohort in a folder that is thrown away; gives how many slices it holds."""
    from site_agent.cohort import build_cohort
    from site_agent.intake.folder import read_folder
    from site_agent.intake.reasons import IntakeReport

    with tempfile.TemporaryDirectory() as cohort:
        patients = read_folder(
            folder,
            pseudonym_key=b"benchmark",
            slices_per_patient=10**6,
            report=IntakeReport(),
            modality="CT",
            memory=Path(cohort),
            readers=readers,
        )
        return build_cohort(Path(cohort), patients, modality="CT").slices


def measured(what: str, folder: Path, cores: set[int]) -> dict[str, float]:
    """One run in a process of its own on ``cores``: slices a second and MiB at the peak."""
    command = [sys.executable, __file__, "--run", what, str(folder), "--cores", str(len(cores))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    output = subprocess.run(
        ["taskset", "-c", ",".join(map(str, sorted(cores))), *command],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found: dict[str, float] = json.loads(output)
    return found


def run(what: str, folder: Path, cores: int) -> dict[str, float]:
    """The run that ``measured`` starts."""
    began = time.perf_counter()
    slices = bare(folder) if what == "bare" else indexed(folder, cores)
    seconds = time.perf_counter() - began
    own, children = (
        resource.getrusage(who).ru_maxrss / 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    cpu_s = sum(os.times()[:4])
    return {
        "slices": slices,
        "per_s": slices / seconds,
        "cpu_ms": 1000 * cpu_s / slices,
        "mib": own,
        "reader_mib": children,
    }


def compared(folder: Path) -> dict[str, object]:
    """The loop and intake on one and two cores, and whether the bars are cleared."""
    cores = sorted(os.sched_getaffinity(0))
    bare(folder)  # so that all find the files in the page cache
    loops = [measured("bare", folder, {cores[0]})]
    one = measured("intake", folder, {cores[0]})
    two = measured("intake", folder, set(cores[:2])) if len(cores) > 1 else None
    loops.append(measured("bare", folder, {cores[0]}))
    loop = max(loops, key=lambda found: found["per_s"])
    ratios = {"one_core": one["per_s"] / loop["per_s"]}
    if two is not None:
        ratios["two_cores"] = two["per_s"] / loop["per_s"]
    return {
        "bare": loop,
        "bare_spread": min(found["per_s"] for found in loops) / loop["per_s"],
        "intake_one_core": one,
        "intake_two_cores": two,
        "ratio": ratios,
        "cleared": {
            "one_core": ratios["one_core"] >= ONE_CORE,
            "two_cores": ratios.get("two_cores", 0.0) > TWO_CORES,
        },
    }


def main() -> None:
    """Parses the command line and prints the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="DICOM files of CT slices")
    parser.add_argument("--made", type=int, help="make so many slices instead")
    parser.add_argument("--edge", type=int, default=512, help="of a made slice, pixels")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, default=1, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        print(json.dumps(run(asked.run[0], Path(asked.run[1]), asked.cores)))
        return
    with tempfile.TemporaryDirectory() as made:
        if asked.made:
            write_series(Path(made), slices=asked.made, edge=asked.edge)
        elif asked.folder is None:
            parser.error("give a folder, or --made N")
        found = compared(Path(made) if asked.made else asked.folder)
    text = json.dumps(found, indent=2)
    print(text)
    if asked.json:
        asked.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
