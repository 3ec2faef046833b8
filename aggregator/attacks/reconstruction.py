"""Gradient inversion with the distiller's own prior and generator: the aggregator's best attack.

Zhu, Liu and Han (NeurIPS 2019) look for images whose gradient is the one that was sent; Geiping et
al. (NeurIPS 2020) add a prior on images; Jeon et al. (NeurIPS 2021) let a generator be that prior.
Here the generator is SPG:

1. of the free images those are taken whose own gradients are nearest to what was sent, or whatever
   the attacker likes better;
2. they are warped, toned, their spectrum changed, and where the generator is ``LOOSE`` a residual
   is added that reaches any image, so that their gradients come near; their noise is drawn anew at
   every step, as the sites' own follows from images that the attacker does not know;
3. a descent of many local steps is taken for a gradient, by the direction of its filters.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregator.attacks.summaries import Answer, Question
from aggregator.distill.distiller import CURVE_RATE, CURVES
from aggregator.distill.matching import (
    Distance,
    after,
    distance_to,
    exact_match,
    relative_squared_distance,
)
from aggregator.distill.observation import Observer
from aggregator.distill.spg import identity_parameters, personalise
from shared.architectures import Network
from shared.contract import RunContract, Spg
from shared.networks import apply_network, restoration_loss
from shared.tasks.settings import Task
from shared.training import noisy_pool

LOOSE = Spg(residual_bound=0.5, warp_px=12.0)
"""The generator's bounds: with half the window in the residual they hold nothing back."""
GENTLE = Spg(residual=False)
"""Without a residual an image stays one of the anatomy it began with."""
RATE = 0.01
"""Adam's step for pixels and grids."""
DOSE_STEPS = 20
"""Steps for which the noise level of the images counts as known."""
CANDIDATES = 24
"""Free images that are compared with what was sent."""


@dataclass(frozen=True, eq=False)
class Observation:
    """One vector that was sent, and where it was asked for."""

    network: Network
    weights: Tensor  # (D,)
    distance: Distance
    noise: Tensor | None = None
    """(1, 1, S, S), where the attacker knows it."""


def observations(
    contract: RunContract, seen: Sequence[tuple[Question, Answer]]
) -> list[Observation]:
    """What was ``seen`` of the same patients, vector by vector."""
    found = []
    for question, answer in seen:
        network, sent = contract.network(question.network), answer.values.float()
        if question.kind == "local-steps":
            (target,) = question.lifted(sent)
            cosine = distance_to(
                target, name="cosine", network=network, variance=torch.zeros_like(target)
            )
            found.append(Observation(network, question.weights[0], cosine))
            continue
        reduced = [functools.partial(after, sketch) for sketch in question.sketches]
        for probe, (weights, target) in enumerate(zip(question.weights, sent, strict=True)):
            distance = functools.partial(relative_squared_distance, target=target)
            found.append(
                Observation(network, weights, reduced[probe](distance) if reduced else distance)
            )
    return found


def nearest(
    observed: Sequence[Observation], images: Tensor, *, task: Task, count: int, seed: int
) -> Tensor:
    """The ``count`` of ``images`` (M, 1, S, S) whose own gradients are nearest to what was sent."""
    places = torch.linspace(0, len(images) - 1, min(CANDIDATES, len(images))).round().long()
    some = images[places.to(images.device)]
    lq = noisy_pool(task, some, draws=1, seed=seed)[: len(some)]
    distances = torch.zeros(len(some))
    for one in observed:
        for number, (low, high) in enumerate(zip(lq, some, strict=True)):
            distances[number] += float(_match(one, low[None], high[None]).detach())
    order = distances.argsort()[:count]
    return some[order.to(some.device)]


def reconstruct(
    observed: Sequence[Observation],
    start: Tensor,
    *,
    task: Task,
    bounds: Spg,
    steps: int,
    seed: int,
    on_step: Callable[[], None],
    at_once: int = 1,
) -> Tensor:
    """Images (N, 1, S, S) made of ``start`` whose mean gradients are near to what was sent.

    Every step looks at ``at_once`` of what was ``observed``.
    """
    generator = torch.Generator().manual_seed(seed)
    neutral = identity_parameters(len(start), start.shape[-1], bounds)
    leaves = {name: value.to(start.device).requires_grad_(True) for name, value in neutral.items()}
    rates = [
        {"params": [leaf], "lr": CURVE_RATE if name in CURVES else RATE}
        for name, leaf in leaves.items()
    ]
    optimiser = torch.optim.Adam(rates, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    observer: Observer | None = None
    for step in range(steps):
        images = personalise(start, leaves, bounds)
        total = images.new_zeros(())
        for pick in torch.randint(len(observed), (at_once,), generator=generator).tolist():
            one = observed[pick]
            if one.noise is not None:
                lq = images + one.noise
            else:
                if observer is None or step % DOSE_STEPS == 0:
                    observer = Observer(task, images.detach(), generator=generator)
                observer.renew()
                lq = observer.observe(images)
            total = total + _match(one, lq, images) / at_once
        optimiser.zero_grad(set_to_none=True)
        total.backward(inputs=list(leaves.values()))  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        on_step()
    return personalise(start, leaves, bounds).detach()


def _match(one: Observation, lq: Tensor, hq: Tensor) -> Tensor:
    """Distance () of the images' mean gradient from what was sent."""
    loss = functools.partial(_loss, one.network)
    return exact_match(loss, weights=one.weights, lq=lq, hq=hq, distance=one.distance)


def _loss(network: Network, theta: Tensor, lq: Tensor, hq: Tensor) -> Tensor:
    return restoration_loss(apply_network(network, theta, lq), hq)
