"""How much nearer gradient inversion comes to a patient than images of somebody else do.

Absolute figures mean nothing between images of one anatomy, so it is the *excess* that counts: how
much better the best reconstruction agrees with a patient's nearest slice than the best null does,
for each patient by itself. Nulls are the mean image of people who are in no hospital, their single
images, the prior's own and public ones; which is best for a patient, an oracle says, as it does for
reconstructions. All are aligned alike (:mod:`shared.similarity`).

The attack is made twice (:mod:`aggregator.attacks.reconstruction`). ``unaided`` it begins with the
free images whose gradients fit best, and with a generator that holds nothing back. Aided it begins
with the nulls that the oracle chose for those it is after, so that whatever the summary tells of
them is an excess. The better of the two counts. A reconstruction from a mean is compared with every
patient behind it.

The control is easier: a small image of one slice, many requests at random weights, and noise that
the attacker knows. Unless the unaided attack succeeds there, its failure elsewhere says nothing.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from aggregator.attacks.intervals import mean_of
from aggregator.attacks.reconstruction import (
    GENTLE,
    LOOSE,
    Observation,
    nearest,
    observations,
    reconstruct,
)
from aggregator.attacks.scene import Scene
from aggregator.attacks.summaries import MODES, Question, answers, gathered
from aggregator.attacks.watch import Steps, Watch
from aggregator.distill.matching import relative_squared_distance
from shared.contract import Granularity, Spg
from shared.gradients import patient_gradient, request_seed
from shared.networks import initial_weights
from shared.release.progress import Advance
from shared.similarity import Likeness, to_patients

PSNR_BAR_DB, SSIM_BAR = 1.0, 0.05
"""Upper ends of the excess that a mean over patients may have."""
CONTROL_PX = 32
CONTROL_NOISE = 0.3
"""Standard deviation, window units, of noise that the attacker of the control knows."""
CONTROL_AT_ONCE = 4
MOST_NULLS = 48
"""Of the prior's images, and of the public ones, that are tried."""


@dataclass(frozen=True)
class Effort:
    """How hard the attack tries."""

    steps: int = 80
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


@dataclass(frozen=True)
class Aid:
    """What a reconstruction begins with, of a goal and a seed, and how far it may go from there."""

    begin: Callable[[Goal, int], Tensor]
    bounds: Spg


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
    images = null_images(scene)
    with watch("nulls") as shown:
        nulls = _compared(images, scene.participants, shown)
    aids: tuple[Aid, ...] = (
        Aid(functools.partial(_fitting, scene), LOOSE),
        Aid(functools.partial(_chosen, images, nulls), GENTLE),
    )
    rows = []
    with watch("inversion") as shown:
        goals = sum(len(of_mode) for of_mode in found.values())
        step = Steps(shown, total=len(aids) * effort.steps * goals)
        for mode, of_mode in found.items():
            places = sorted({place for goal in of_mode for place in goal.patients})
            made = [
                _attacked(scene, of_mode, places, aid, effort.steps, seed=seed, on_step=step)
                for aid in aids
            ]
            null = nulls.best().at(places)
            excess, unaided = _excess(Likeness.best_of(made), null), _excess(made[0], null)
            more = {f"unaided_{name}": figure for name, figure in unaided.items()}
            rows.append({"mode": mode, "attacked_patients": len(places), **excess, **more})
    with watch("its control") as shown:
        step = Steps(shown, total=effort.control_steps * effort.control_patients)
        control = _control(scene, effort, seed=seed, on_step=step)
    return {
        "rows": rows,
        "control": control,
        "bar": {"modes": ["cohort", "federation"], "psnr_db": PSNR_BAR_DB, "ssim": SSIM_BAR},
        "passed": all(
            row["psnr_db"]["interval"][1] <= PSNR_BAR_DB and row["ssim"]["interval"][1] <= SSIM_BAR
            for row in rows
            if row["mode"] != "patient"
        ),
        "control_succeeded": control["psnr_db"]["interval"][0] > PSNR_BAR_DB,
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


def _compared(images: Tensor, patients: Sequence[Tensor], advance: Advance) -> Likeness:
    """Likeness (M, P) of images (M, 1, S, S) to patients."""
    step, found = Steps(advance, total=len(images)), []
    for image in images:
        found.append(to_patients(image[None], patients))
        step()
    return Likeness.joined(found)


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


def _fitting(scene: Scene, goal: Goal, seed: int) -> Tensor:
    """The free images whose own gradients fit best."""
    free, task = scene.prior.free.to(scene.device), scene.contract.task
    return nearest(goal.observed, free, task=task, count=goal.images, seed=seed)


def _chosen(images: Tensor, nulls: Likeness, goal: Goal, seed: int) -> Tensor:
    """An oracle's choice of nulls, each the one that adds most to what the others have."""
    behind = nulls.psnr_db[:, list(goal.patients)]  # (M, P)
    picks: list[int] = []
    for _ in range(goal.images):
        so_far = behind[picks].amax(dim=0) if picks else behind.amin(dim=0)
        picks.append(int(torch.maximum(behind, so_far).sum(dim=1).argmax()))
    return images[picks]


def _attacked(
    scene: Scene,
    goals: Sequence[Goal],
    places: Sequence[int],
    aid: Aid,
    steps: int,
    *,
    seed: int,
    on_step: Callable[[], None],
) -> Likeness:
    """Of each patient at ``places`` the best likeness (P,) of what was made from answers of it."""
    people = [scene.participants[place] for place in places]
    best = []
    for number, goal in enumerate(goals):
        own = request_seed(seed, number)
        made = reconstruct(
            goal.observed,
            aid.begin(goal, own).to(scene.device),
            task=scene.contract.task,
            bounds=aid.bounds,
            steps=steps,
            seed=own,
            on_step=on_step,
        )
        behind = torch.tensor([place in goal.patients for place in places])
        best.append(to_patients(made.cpu(), people).best().where(behind))
    return Likeness.best_of(best)


def _excess(best: Likeness, nulls: Likeness) -> dict[str, Any]:
    return {
        "psnr_db": mean_of((best.psnr_db - nulls.psnr_db).tolist()),
        "ssim": mean_of((best.ssim - nulls.ssim).tolist()),
    }


def _control(
    scene: Scene, effort: Effort, *, seed: int, on_step: Callable[[], None]
) -> dict[str, Any]:
    """The same attack on one small slice each, at random weights, with noise that it knows."""
    contract, network = scene.contract, scene.contract.student
    people = [_small(slices[:1]) for slices in scene.participants[: effort.control_patients]]
    nulls = to_patients(_small(null_images(scene)), people).best()
    begun, best = _small(scene.prior.free[:1]).to(scene.device), []
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
        made = reconstruct(
            observed,
            begun,
            task=contract.task,
            bounds=LOOSE,
            steps=effort.control_steps,
            seed=own,
            on_step=on_step,
            at_once=CONTROL_AT_ONCE,
        )
        best.append(to_patients(made.cpu(), [slices]).best())
    return {"attacked_patients": len(people), **_excess(Likeness.joined(best), nulls)}


def _small(images: Tensor) -> Tensor:
    return interpolate(images, size=(CONTROL_PX, CONTROL_PX), mode="area")
