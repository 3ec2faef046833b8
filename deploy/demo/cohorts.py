"""Who is where: each hospital's patients, and those kept back to evaluate on."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HOSPITALS = ("hospital-a", "hospital-b", "hospital-c")
KEPT_BACK = 5
"""One patient in so many is kept back, rounded down, at least one."""
MIN_PATIENTS = 6
"""A hospital needs five patients for the sites' policy and one to keep back."""


class CohortsError(ValueError):
    """A data folder that cannot be used; the text says what it should hold."""


@dataclass(frozen=True)
class Cohorts:
    """Folders of links to patient folders."""

    sites: dict[str, Path]
    training: Path
    """Parent of the sites' folders."""
    evaluation: Path
    public: Path | None


def arrange(data: Path, *, folder: Path) -> Cohorts:
    """Links the patients of ``data/hospital-*`` into ``folder``, the kept-back ones apart.

    Raises ``CohortsError`` where a hospital is missing or too small.
    """
    training, evaluation = folder / "images", folder / "evaluation"
    evaluation.mkdir(parents=True)
    for hospital in HOSPITALS:
        patients = patient_folders(data / hospital)
        kept_back = set(keep_back([patient.name for patient in patients]))
        (training / hospital).mkdir(parents=True)
        for patient in patients:
            if patient.name in kept_back:
                link = evaluation / f"{hospital}-{patient.name}"
            else:
                link = training / hospital / patient.name
            link.symlink_to(patient.resolve(), target_is_directory=True)
    public = data / "public-prior"
    return Cohorts(
        sites={hospital: training / hospital for hospital in HOSPITALS},
        training=training,
        evaluation=evaluation,
        public=public.resolve() if public.is_dir() else None,
    )


def patient_folders(hospital: Path) -> list[Path]:
    """A hospital's patients, one folder each; raises ``CohortsError``."""
    if not hospital.is_dir():
        raise CohortsError(
            f"{hospital}: is not there; DATA needs {', '.join(HOSPITALS)}, a folder a patient"
        )
    patients = sorted(entry for entry in hospital.iterdir() if entry.is_dir())
    if len(patients) < MIN_PATIENTS:
        raise CohortsError(
            f"{hospital}: has {len(patients)} patient folders; it needs {MIN_PATIENTS} at least"
        )
    return patients


def keep_back(names: Sequence[str]) -> list[str]:
    """The names kept back: the lowest by hash, so that the choice is stable and blind."""
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return sorted(ordered[: max(1, len(names) // KEPT_BACK)])
