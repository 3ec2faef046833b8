"""A small stage of phantoms: three sites, people who are in none, and a contract of a few steps."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from aggregator.attacks.scene import Patients, Scene
from aggregator.attacks.summaries import Question, questions
from aggregator.distill.phantom import phantom_slices
from aggregator.distill.prior import build_prior
from shared.architectures import Residual
from shared.contract import Anchor, Probes, RunContract, Spg
from shared.images import window
from shared.release.progress import Advance
from shared.tasks.settings import CtDenoise

SITES, PATIENTS, UNSEEN = 3, 4, 14

CONTRACT = RunContract(
    name="stage",
    images=2,
    min_patients=2,
    task=CtDenoise(size_px=32, angles=30, bins=48, pixel_mm=9.0, photons=6),
    student=Residual(depth=3, width=6),
    anchor_network=Residual(depth=2, width=4),
    spg=Spg(residual_levels=2),
    probes=Probes(requests=1, depths=(2, 6), steps=2, draws=1, clip_norm=10.0),
    anchor=Anchor(rounds=1, local_steps=3, public_steps=4, crop_px=16),
)

CALM = CtDenoise(size_px=32, angles=30, bins=48, pixel_mm=9.0, photons=60)


def people(contract: RunContract, *, count: int, seed: int) -> Patients:
    """So many people of one slice or two each, drawn as no prior is."""
    task = contract.task
    stored = phantom_slices(
        anatomy="thorax",
        modality="CT",
        count=2 * count,
        size_px=task.size_px,
        seed=seed,
        textured=True,
    )
    low, high = task.window
    slices = torch.from_numpy(window(stored, low_hu=low, high_hu=high))
    return tuple(slices[2 * n : 2 * n + 1 + n % 2] for n in range(count))


def stage(contract: RunContract) -> Scene:
    """The contract on the stage."""
    everybody = people(contract, count=SITES * PATIENTS + UNSEEN, seed=99)
    sites = {f"site-{n}": everybody[PATIENTS * n : PATIENTS * (n + 1)] for n in range(SITES)}
    size = contract.task.size_px
    return Scene(
        contract=contract,
        prior=build_prior(contract, public=None),
        sites=sites,
        unseen=everybody[SITES * PATIENTS :],
        public=torch.empty(0, 1, size, size),
        foundation=None,
        device=torch.device("cpu"),
    )


class Watched(dict[str, list[tuple[int, int]]]):
    """Notes what each phase tells: steps done and in all."""

    @contextmanager
    def __call__(self, what: str) -> Iterator[Advance]:
        told = self[what] = []
        yield lambda done, total: told.append((done, total))

    def ended(self) -> dict[str, int]:
        """How many steps each phase counted to; fails where one did not go from 1 to its end."""
        for told in self.values():
            assert told == [(done, len(told)) for done in range(1, len(told) + 1)]
        return {what: len(told) for what, told in self.items()}


@pytest.fixture(scope="session")
def scene() -> Scene:
    """The stage with clear answers."""
    return stage(CONTRACT)


@pytest.fixture(scope="session")
def asked(scene: Scene) -> list[Question]:
    """What its run asks."""
    return questions(scene, on_step=lambda *_: None)


@pytest.fixture(scope="session")
def calm_scene() -> Scene:
    """The stage with a tenth of the noise: what an image does to a gradient is plain to see."""
    return stage(CONTRACT.model_copy(update={"task": CALM}))


@pytest.fixture(scope="session")
def calm_asked(calm_scene: Scene) -> list[Question]:
    """What its run asks."""
    return questions(calm_scene, on_step=lambda *_: None)
