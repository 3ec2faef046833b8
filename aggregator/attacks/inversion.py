"""How much nearer gradient inversion comes to a patient than images of somebody else do.

Absolute figures mean nothing between images of one anatomy, so it is the *excess* that counts: how
much better the best reconstruction agrees with a patient's nearest slice than the best null does,
for each patient by itself. Nulls are the mean image of people who are in no hospital, their single
images, the prior's own and public ones; the best of them is an oracle's choice, as is the best
reconstruction. *Gain* is over the images that the attack started from, and heeds less. All are
aligned alike (:mod:`aggregator.attacks.similarity`).

A reconstruction from a mean is compared with every patient behind it. The control is easier: a
small image of one slice, many requests at random weights, and noise that the attacker knows. Unless
the attack succeeds there, its failure elsewhere says nothing.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from aggregator.attacks.intervals import mean_of
from aggregator.attacks.reconstruction import Observation, nearest, observations, reconstruct
from aggregator.attacks.scene import Scene
from aggregator.attacks.similarity import Likeness, to_patients
from aggregator.attacks.summaries import MODES, Question, answers, gathered
from aggregator.attacks.watch import Steps, Watch
from aggregator.distill.matching import relative_squared_distance
from shared.contract import Granularity
from shared.gradients import patient_gradient, request_seed
from shared.networks import initial_weights
from shared.release.progress import Advance

PSNR_BAR_DB, SSIM_BAR = 1.0, 0.05
"""Upper ends of the excess that a mean over patients may have."""
CONTROL_PX = 32
CONTROL_NOISE = 0.3
"""Standard deviation, window units, of noise that the attacker of the control knows."""
CONTROL_AT_ONCE = 4
NULLS_AT_ONCE = 8
MOST_NULLS = 48
"""Of the prior's images, and of the public ones, that are tried."""


@dataclass(frozen=True)
class Effort:
    """How hard the attack tries."""

    steps: int = 120
    patients: int = 8
    """Attacked one by one at granularity patient."""
    sites: int = 3
    images: int = 3
    """Reconstructed together from a mean over patients."""
    control_patients: int = 4
    control_requests: int = 64
    control_steps: int = 240


QUICK = Effort(steps=30, patients=3, sites=1, images=2, control_patients=2, control_requests=32)


@dataclass(frozen=True)
class Goal:
    """Patients whom the attacker knows some vectors of."""

    observed: list[Observation]
    patients: tuple[int, ...]
    images: int


def measure(
    scene: Scene,
    asked: Sequence[Question],
    *,
    seed: int,
    effort: Effort,
    watch: Watch,
) -> dict[str, Any]:
    """Excess of reconstructions over the best null, mode by mode, and of the control."""
    with watch("what sites send") as shown:
        found = _goals(scene, asked, effort, shown, seed=seed)
    with watch("nulls") as shown:
        nulls = _nulls(scene, shown)
    goals = sum(len(of_mode) for of_mode in found.values())
    rows = []
    with watch("inversion") as shown:
        step = Steps(shown, total=effort.steps * goals)
        for mode, of_mode in found.items():
            places, best, start = _attacked(scene, of_mode, effort, seed=seed, on_step=step)
            rows.append({"mode": mode, **_figures(best, start, nulls.at(places))})
    with watch("its control") as shown:
        step = Steps(shown, total=effort.control_steps * effort.control_patients)
        control = _control(scene, effort, seed=seed, on_step=step)
    return {
        "rows": rows,
        "control": control,
        "bar": {"modes": ["cohort", "federation"], "psnr_db": PSNR_BAR_DB, "ssim": SSIM_BAR},
        "passed": all(
            row["excess_psnr_db"]["interval"][1] <= PSNR_BAR_DB
            and row["excess_ssim"]["interval"][1] <= SSIM_BAR
            for row in rows
            if row["mode"] != "patient"
        ),
        "control_succeeded": control["excess_psnr_db"]["interval"][0] > PSNR_BAR_DB,
        "steps": effort.steps,
        "seed": seed,
    }


def null_images(scene: Scene) -> Tensor:
    """Images that owe nothing to a participant: (M, 1, S, S)."""
    unseen = torch.cat(list(scene.unseen))
    mean = unseen.mean(dim=0, keepdim=True)
    return torch.cat([mean, unseen, evenly(scene.prior.free), evenly(scene.public)])


def evenly(images: Tensor, at_most: int = MOST_NULLS) -> Tensor:
    """So many of (M, 1, S, S), evenly spaced."""
    places = torch.linspace(0, len(images) - 1, min(at_most, len(images))).round().long()
    return images[places]


def _nulls(scene: Scene, advance: Advance) -> Likeness:
    """The best null of each participant."""
    chunks = torch.split(null_images(scene), NULLS_AT_ONCE)
    step, best = Steps(advance, total=len(chunks)), []
    for chunk in chunks:
        best.append(to_patients(chunk, scene.participants).best())
        step()
    return Likeness.best_of(best)


def _goals(
    scene: Scene, asked: Sequence[Question], effort: Effort, advance: Advance, *, seed: int
) -> dict[Granularity, list[Goal]]:
    """What is attacked in each mode: all that is known of the same patients together."""
    generator = torch.Generator().manual_seed(seed)
    step = Steps(advance, total=len(asked) * len(scene.participants))
    sums = [(question, gathered(scene, question, on_patient=step)) for question in asked]
    goals: dict[Granularity, list[Goal]] = {}
    for mode in MODES:
        heard = [
            (question, answers(scene, question, sites, mode, generator=generator))
            for question, sites in sums
            if mode != "patient" or question.kind == "gradients"
        ]
        if not heard:
            continue  # descents alone are never of one patient
        count = len(heard[0][1])
        most = min(effort.patients if mode == "patient" else effort.sites, count)
        for place in torch.linspace(0, count - 1, most).round().int().tolist():
            seen = [(question, of_all[place]) for question, of_all in heard]
            observed = observations(scene.contract, seen)
            images = 1 if mode == "patient" else effort.images
            goals.setdefault(mode, []).append(Goal(observed, seen[0][1].patients, images))
    return goals


def _attacked(
    scene: Scene, goals: Sequence[Goal], effort: Effort, *, seed: int, on_step: Callable[[], None]
) -> tuple[list[int], Likeness, Likeness]:
    """The patients attacked, and of each the best likeness of reconstructions and of starts."""
    places = sorted({place for goal in goals for place in goal.patients})
    people = [scene.participants[place] for place in places]
    free = scene.prior.free.to(scene.device)
    best, start = [], []
    for number, goal in enumerate(goals):
        own = request_seed(seed, number)
        task = scene.contract.task
        begun = nearest(goal.observed, free, task=task, count=goal.images, seed=own)
        made = reconstruct(
            goal.observed, begun, task=task, steps=effort.steps, seed=own, on_step=on_step
        )
        behind = torch.tensor([place in goal.patients for place in places])
        best.append(to_patients(made.cpu(), people).best().where(behind))
        start.append(to_patients(begun.cpu(), people).best().where(behind))
    return places, Likeness.best_of(best), Likeness.best_of(start)


def _figures(best: Likeness, start: Likeness, nulls: Likeness) -> dict[str, Any]:
    return {
        "attacked_patients": len(best.psnr_db),
        "excess_psnr_db": mean_of((best.psnr_db - nulls.psnr_db).tolist()),
        "excess_ssim": mean_of((best.ssim - nulls.ssim).tolist()),
        "gain_psnr_db": mean_of((best.psnr_db - start.psnr_db).tolist()),
        "gain_ssim": mean_of((best.ssim - start.ssim).tolist()),
    }


def _control(
    scene: Scene, effort: Effort, *, seed: int, on_step: Callable[[], None]
) -> dict[str, Any]:
    """The same attack on one small slice each, at random weights, with noise that it knows."""
    contract, network = scene.contract, scene.contract.student
    people = [_small(slices[:1]) for slices in scene.participants[: effort.control_patients]]
    nulls = to_patients(_small(null_images(scene)), people).best()
    free = _small(scene.prior.free).to(scene.device)
    best, start = [], []
    for number, slices in enumerate(people):
        own = request_seed(seed, "control", number)
        generator = torch.Generator().manual_seed(own)
        hq, observed = slices.to(scene.device), []
        for request in range(effort.control_requests):
            weights = initial_weights(network, seed=request_seed(own, request)).to(scene.device)
            noise = CONTROL_NOISE * torch.randn(hq.shape, generator=generator).to(hq)
            target = patient_gradient(
                contract=contract, network="student", weights=weights, lq=hq + noise, hq=hq
            )
            distance = functools.partial(relative_squared_distance, target=target)
            observed.append(Observation(network, weights, distance, noise))
        begun = free[:1]
        made = reconstruct(
            observed,
            begun,
            task=contract.task,
            steps=effort.control_steps,
            seed=own,
            on_step=on_step,
            at_once=CONTROL_AT_ONCE,
        )
        best.append(to_patients(made.cpu(), [slices]).best())
        start.append(to_patients(begun.cpu(), [slices]).best())
    return _figures(Likeness.joined(best), Likeness.joined(start), nulls)


def _small(images: Tensor) -> Tensor:
    return interpolate(images, size=(CONTROL_PX, CONTROL_PX), mode="area")
