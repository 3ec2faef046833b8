"""Small distillations with people of the attacker's choice, and what a student learns of them."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from aggregator.attacks.scene import Scene
from aggregator.attacks.summaries import Question, added_up, mixture, next_question
from aggregator.distill.directions import Foundation
from aggregator.distill.distiller import Distiller
from shared.architectures import Network
from shared.contract import RunContract
from shared.networks import restoration_loss
from shared.tasks.degradation import degrade
from shared.tasks.degradation import parts as tasks_of
from shared.training import enhance, fit_pairs

SITE = "hospital"
STUDENT_STEPS = 300
LOSS_SEED = 7
MOST_STEPS, MOST_DEPTH, MOST_LOCAL_STEPS, MOST_IMAGES = 20, 120, 100, 4


def small(contract: RunContract) -> RunContract:
    """The contract with one round of each lever at most, fewer steps, and fewer images."""
    anchor, probes = contract.anchor, contract.probes
    return contract.model_copy(
        update={
            "images": min(contract.images, MOST_IMAGES),
            "anchor": anchor.model_copy(
                update={
                    "rounds": min(anchor.rounds, 1),
                    "local_steps": min(anchor.local_steps, MOST_LOCAL_STEPS),
                }
            ),
            "probes": probes.model_copy(
                update={
                    "requests": min(probes.requests, 1),
                    "steps": min(probes.steps, MOST_STEPS),
                    "depths": tuple(sorted({min(d, MOST_DEPTH) for d in probes.depths})),
                }
            ),
        }
    )


def distilled(
    scene: Scene,
    contract: RunContract,
    asked: Sequence[Question],
    people: Sequence[Tensor],
    *,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Pairs (LQ, HQ) of a contract's run with ``people`` as its patients, on the CPU.

    ``asked`` holds the scene's questions: what the run begins with is not trained again.
    """
    drawn = contract.model_copy(update={"seed": seed % 2**31})
    stage = replace(scene, contract=drawn)
    start = scene.prior.start[: drawn.images]
    distiller = Distiller(
        drawn,
        replace(scene.prior, start=start),
        device=scene.device,
        foundation=_begun(scene, asked),
    )
    generator = torch.Generator().manual_seed(seed)
    while not distiller.finished:
        question = next_question(distiller)
        added = added_up(stage, question, people, site=SITE)
        values = mixture(stage, question, [added], patients=[len(people)], generator=generator)
        distiller.absorb([values], patients=[len(people)])
    return distiller.pairs()


def _begun(scene: Scene, asked: Sequence[Question]) -> Foundation:
    """The free public network and the directions; of a run without descents, nothing is used."""
    if scene.foundation is not None:
        return scene.foundation
    for question in asked:
        if question.kind == "local-steps":
            return Foundation(question.weights[0], question.basis)
    return Foundation(torch.empty(0), None)


def student_of(scene: Scene, lq: Tensor, hq: Tensor, *, seed: int) -> Tensor:
    """Weights (D,) of the contract's student after a short training on pairs."""
    return fit_pairs(
        lq=lq,
        hq=hq,
        network=scene.contract.student,
        steps=STUDENT_STEPS,
        seed=seed,
        device=scene.device,
    )


class Losses:
    """Everybody's loss under weights of one network, always on the same degraded images."""

    def __init__(self, scene: Scene, network: Network) -> None:
        self._network = network
        self._pairs = []
        for number, slices in enumerate(scene.everybody):
            hq = slices.to(scene.device)
            lq = [
                degrade(one, hq, seed=LOSS_SEED + number) for one in tasks_of(scene.contract.task)
            ]
            self._pairs.append((torch.cat(lq), hq.repeat(len(lq), 1, 1, 1)))

    def of(self, weights: Tensor) -> Tensor:
        """Mean squared error (P,) of each person's slices."""
        losses = [
            restoration_loss(enhance(self._network, weights, lq), hq) for lq, hq in self._pairs
        ]
        return torch.stack(losses).cpu()
