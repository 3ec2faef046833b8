"""The stage of the attacks: simulated hospitals, people who are in none of them, and a contract.

Attacks are measured where the truth is known. Hospitals are folders of images as in
:mod:`aggregator.simulate`; the patients kept apart are those whom nobody has seen; what is public
is the attacker's too.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aggregator.distill.directions import Foundation, OnStep
from aggregator.distill.prior import Prior
from aggregator.foundation import FoundationError, foundation_of, founded, read_prior
from aggregator.runs import FOUNDATION
from aggregator.simulate import Hospital, Split, members_of, open_hospitals
from shared.contract import RunContract
from shared.readers import read_images

Patients = tuple[Tensor, ...]
"""Slices (n_i, 1, S, S) of each, in window units."""


@dataclass(frozen=True, eq=False)
class Scene:
    """Who takes part, who does not, and what everybody knows."""

    contract: RunContract
    prior: Prior
    sites: dict[str, Patients]
    unseen: Patients
    public: Tensor  # (M, 1, S, S), M may be 0
    foundation: Foundation | None
    device: torch.device

    @property
    def participants(self) -> Patients:
        """Everybody who takes part, site after site."""
        return tuple(patient for patients in self.sites.values() for patient in patients)

    @property
    def everybody(self) -> Patients:
        """Participants, then those who are in no hospital."""
        return (*self.participants, *self.unseen)

    def members(self, site: str) -> list[int]:
        """Places of a site's patients among the participants."""
        first = 0
        for name, patients in self.sites.items():
            if name == site:
                return list(range(first, first + len(patients)))
            first += len(patients)
        raise KeyError(site)


@dataclass(frozen=True)
class Sources:
    """Where the images come from, and where what is computed of them is kept."""

    data: Path
    place: Path
    public: Path | None = None
    split: Split = "choosing"
    sequence: str | None = None

    @property
    def run(self) -> Path:
        """Folder of a run over the hospitals."""
        return self.place / "run"


def open_scene(
    contract: RunContract, sources: Sources, *, on_step: OnStep
) -> tuple[Scene, list[Hospital]]:
    """Reads the images, and computes the contract's public directions where it has some.

    Raises ``ReaderError``, ``HospitalError`` or ``FoundationError``.
    """
    task, place = contract.task, sources.place.absolute()
    hospitals, apart = open_hospitals(
        sources.data,
        contract=contract,
        homes=place / "sites",
        split=sources.split,
        sequence=sources.sequence,
    )
    if not apart:
        raise FoundationError("nobody is kept apart to compare with: give more patients")
    if contract.granularity == "federation":
        contract = contract.model_copy(update={"members": members_of(hospitals)})
    contract = founded(
        contract, public=sources.public, file=sources.run / FOUNDATION, on_step=on_step
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = task.size_px
    public = torch.empty(0, 1, size, size)
    if sources.public is not None:
        low, high = task.window
        read = read_images(sources.public, size_px=size, low=low, high=high, modality=task.modality)
        public = torch.cat([torch.from_numpy(slices) for slices in read])
    scene = Scene(
        contract=contract,
        prior=read_prior(contract, sources.public),
        sites={
            one.name: tuple(torch.from_numpy(slices) for slices in one.training_images(task))
            for one in hospitals
        },
        unseen=tuple(torch.from_numpy(slices) for slices in apart),
        public=public,
        foundation=foundation_of(contract, sources.run / FOUNDATION),
        device=device,
    )
    return scene, hospitals
