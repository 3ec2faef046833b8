"""The federation in one process: folders of images as sites, some patients kept apart.

The one module of the aggregator that imports the site's code. Each folder is indexed and
asked through the same worker function as in a deployment. Splits are by patient: those kept
apart are in no cohort.
"""

import hashlib
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from numpy.typing import NDArray
from torch import Tensor

from aggregator.exchange import Exchange
from shared.architectures import Network
from shared.contract import Member, RunContract
from shared.durable import write_durably
from shared.masking import MIN_MEMBERS
from shared.readers import ReaderError
from shared.tasks.settings import Modality, Task
from site_agent.cohort import Cohort, CohortError, build_cohort, open_cohort
from site_agent.intake.folder import IntakeError, read_folder
from site_agent.intake.reasons import IntakeReport
from site_agent.intake.slices import PatientSlices
from site_agent.intake.windowing import windowed
from site_agent.outbox import Outbox
from site_agent.policy import Policy
from site_agent.settings import SiteSettings
from site_agent.solitary import Tally
from site_agent.worker import answer

Split = Literal["choosing", "reporting"]

SPLIT_BY = 3
"""One patient in so many is kept apart."""
HELD_OUT: dict[Split, int] = {"choosing": 0, "reporting": 1}
"""Which ones: those whose place among their hospital's pseudonyms leaves this remainder."""
SLICES_PER_PATIENT = 8
PSEUDONYM_KEY = hashlib.sha256(b"fedstill simulation").digest()
"""Known to all, so that everybody's split is the same."""


class HospitalError(ValueError):
    """A folder that cannot stand for a hospital; the text names the fix."""


@dataclass(frozen=True)
class Hospital:
    """A simulated site: its name, its home with the cohort, and the folders it was made of."""

    name: str
    home: Path
    folders: tuple[str, ...]

    @property
    def cohort(self) -> Cohort:
        """Its indexed training slices."""
        return open_cohort(self.home / "cohort")

    def training_images(self, task: Task) -> list[NDArray[np.float32]]:
        """Its training patients in window units, (n, 1, S, S) each."""
        low, high = task.window
        return self.cohort.images(size_px=task.size_px, low=low, high=high)


def open_hospitals(
    data: Path,
    *,
    contract: RunContract,
    homes: Path,
    split: Split | None,
    sequence: str | None,
    dealt: int = 0,
) -> tuple[list[Hospital], list[NDArray[np.float32]]]:
    """Indexes every folder hospital-* of ``data``; gives the sites and the patients kept apart.

    With ``split`` None nobody is. Hospitals with fewer training patients than the contract wants
    behind a summary are pooled with the ones after them. With ``dealt`` all training patients are
    dealt to so many sites in turn, whatever their folder.

    Raises ``ReaderError`` or ``HospitalError`` where there is too little.
    """
    folders = sorted(entry for entry in data.iterdir() if entry.is_dir()) if data.is_dir() else []
    folders = [entry for entry in folders if entry.name.startswith("hospital")]
    if not folders:
        raise ReaderError(data, "holds no folder named hospital-*, one for each site")
    task, trained, apart = contract.task, {}, []
    for folder in folders:
        patients = _patients(folder, task, sequence)
        kept, held = split_patients(patients, split)
        trained[folder.name] = kept
        apart += [_windowed(patient, task) for patient in held]
    if dealt:
        everyone = _joined(trained, list(trained))
        trained = {f"site-{number + 1}": everyone[number::dealt] for number in range(dealt)}
    pools = pooled(
        {name: len(patients) for name, patients in trained.items()}, least=contract.min_patients
    )
    if len(pools) < max(1, dealt):
        there = ", ".join(f"{name} {len(patients)}" for name, patients in trained.items())
        raise ReaderError(
            data,
            f"has fewer training patients than the contract's min_patients "
            f"{contract.min_patients} ({there})",
            "lower min_patients (2 or more), or give another --sequence or --holdout",
        )
    hospitals = []
    for names in pools:
        name = names[0].lower()
        together = trained[names[0]] if len(names) == 1 else _joined(trained, names)
        try:
            build_cohort(homes / name / "cohort", together, modality=task.modality)
        except CohortError as error:
            raise HospitalError(str(error)) from None
        hospitals.append(Hospital(name, homes / name, names))
    return hospitals, apart


def _patients(folder: Path, task: Task, sequence: str | None) -> list[PatientSlices]:
    try:
        return list(
            read_folder(
                folder,
                pseudonym_key=PSEUDONYM_KEY,
                slices_per_patient=SLICES_PER_PATIENT,
                report=IntakeReport(),
                modality=task.modality,
                sequence=sequence,
            )
        )
    except IntakeError as error:
        raise HospitalError(str(error)) from None


def _joined(
    patients: Mapping[str, Sequence[PatientSlices]], names: Sequence[str]
) -> list[PatientSlices]:
    """The patients of several folders, under pseudonyms that tell folders apart."""
    joined = [
        replace(
            patient,
            pseudonym=hashlib.sha256(f"{name}/{patient.pseudonym}".encode()).hexdigest()[:32],
        )
        for name in names
        for patient in patients[name]
    ]
    return sorted(joined, key=lambda patient: patient.pseudonym)


def split_patients(
    patients: Sequence[PatientSlices], split: Split | None
) -> tuple[list[PatientSlices], list[PatientSlices]]:
    """(trained on, kept apart) of a hospital's patients, by the order of their pseudonyms.

    The patients kept apart in the two splits are never the same.
    """
    if split is None:
        return list(patients), []
    ordered = sorted(patients, key=lambda patient: patient.pseudonym)
    held = [place % SPLIT_BY == HELD_OUT[split] for place in range(len(ordered))]
    return (
        [patient for patient, out in zip(ordered, held, strict=True) if not out],
        [patient for patient, out in zip(ordered, held, strict=True) if out],
    )


def pooled(patients: Mapping[str, int], *, least: int) -> list[tuple[str, ...]]:
    """Folders in their order, joined until each pool has ``least`` patients; none if all have less.

    What is left over joins the last pool.
    """
    pools: list[tuple[str, ...]] = []
    open_pool: tuple[str, ...] = ()
    for name, count in patients.items():
        if not count:
            continue
        open_pool = (*open_pool, name)
        if sum(patients[one] for one in open_pool) >= least:
            pools.append(open_pool)
            open_pool = ()
    if open_pool and pools:
        pools[-1] = (*pools[-1], *open_pool)
    return pools


def in_process(hospitals: Sequence[Hospital], *, modality: Modality, outboxes: Path) -> Exchange:
    """An exchange that asks each hospital's worker function in turn; ``outboxes`` is the run's."""
    opened = {}
    for one in hospitals:
        settings = _settings(one, modality, home=outboxes / one.name)
        _write_keys(settings)
        opened[one.name] = (settings, one.cohort, Outbox(settings.home))

    def exchange(payload: bytes, round: int, sites: Sequence[str]) -> Mapping[str, bytes]:
        answers = {}
        for site in sites:
            settings, cohort, outbox = opened[site]
            answers[site] = answer(payload, settings=settings, cohort=cohort, outbox=outbox)
        return answers

    return exchange


def site_mean(network: Network, gradients: Iterable[Tensor]) -> Tensor:
    """The clear mean (K, D) that a site makes of its patients' clipped gradients (K, D)."""
    tally = Tally(network)
    for one in gradients:
        tally.add(one)
    return tally.mean()


def members_of(hospitals: Sequence[Hospital]) -> tuple[Member, ...]:
    """The hospitals as members of a secure sum.

    Their keys follow from their names, and so the contract's digest is the same in every folder.
    Raises ``HospitalError`` on fewer than a secure sum needs.
    """
    if len(hospitals) < MIN_MEMBERS:
        names = ", ".join(one.name for one in hospitals)
        raise HospitalError(f"granularity federation needs {MIN_MEMBERS} hospitals, not {names}")
    return tuple(
        Member(name=name, signing_key=_key(name).public_key().public_bytes_raw().hex())
        for name in sorted(one.name for one in hospitals)
    )


def _key(name: str) -> Ed25519PrivateKey:
    seed = hashlib.sha256(PSEUDONYM_KEY + name.encode()).digest()
    return Ed25519PrivateKey.from_private_bytes(seed)


def _write_keys(settings: SiteSettings) -> None:
    write_durably(settings.pseudonym_key_path, PSEUDONYM_KEY)
    key = _key(settings.name)
    write_durably(
        settings.signing_key_path,
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _settings(hospital: Hospital, modality: Modality, *, home: Path) -> SiteSettings:
    """A site that allows whatever a contract can ask: here nobody has to be protected from it.

    Its ``home``, with key and privacy ledger, is a run's own, as its outbox is: runs of a benchmark
    go on side by side, over the same hospitals.
    """
    return SiteSettings(
        home=home,
        name=hospital.name,
        aggregator="localhost:1",
        images=hospital.home,
        modality=modality,
        policy=Policy(
            min_patients=2,
            max_local_steps=5_000,
            max_probes=4_096,
            max_requests_an_hour=1_000_000,
            max_requests_a_day=1_000_000,
            max_parameters=100_000_000,
            max_evaluated=64,
            max_judgements_a_day=1_000_000,
            max_honest=1.0,
            tasks=_all_of("tasks"),
            granularities=_all_of("granularities"),
        ),
    )


def _all_of(field: str) -> typing.Any:
    """Every value a policy's tuple of literals may hold."""
    (literal, *_) = typing.get_args(Policy.model_fields[field].annotation)
    return typing.get_args(literal)


def _windowed(patient: PatientSlices, task: Task) -> NDArray[np.float32]:
    low, high = task.window
    return windowed(
        [(one.pixels, one.spacing_mm) for one in patient.slices],
        size_px=task.size_px,
        low=low,
        high=high,
    )
