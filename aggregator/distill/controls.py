"""Nulls of the distiller: what its parts make without a hospital.

Whatever they achieve is no merit of hospital data, and a gain counts only above the best of them.
None reads an answer, the anchor, or matched images.
"""

import torch
from torch import Tensor

from aggregator.distill.distiller import Distiller
from aggregator.distill.prior import Prior
from aggregator.distill.spg import identity_parameters, personalise
from shared.contract import RunContract
from shared.gradients import cohort_gradients, request_seed


def prior_warped(contract: RunContract, prior: Prior, *, seed: int) -> Tensor:
    """The start under one random warp and tone curve an image: (N, 1, S, S), on the CPU.

    What personalisation does without anything to follow; the residual is left out, whose random
    values would be noise.
    """
    random = {"warp": True, "tone": True, "spectrum": False, "residual": False}
    spg = contract.spg.model_copy(update=random)
    generator = torch.Generator().manual_seed(seed)
    neutral = identity_parameters(len(prior.start), prior.start.shape[-1], spg)
    drawn = {name: torch.randn(value.shape, generator=generator) for name, value in neutral.items()}
    return personalise(prior.start, drawn, spg)


def public_anchored(distiller: Distiller) -> tuple[Tensor, Tensor]:
    """Pairs of the start with the free public network's answers: both (T * N, 1, S, S).

    What anchoring does before any hospital round. Raises ``RuntimeError`` on a distiller that is
    not prepared.
    """
    return distiller.anchored(distiller.prior.start, _public(distiller))


def noise_targets(distiller: Distiller) -> Distiller:
    """A distiller that went through the same probe rounds towards random vectors.

    Each target has the direction of white noise and the length of the set's own gradient at its
    probe, clipped and reduced as a hospital's is; all images follow the one. The anchor's rounds
    are left out: the anchor is the free public network. Of ``distiller`` the contract, the prior
    and that network are read. Raises ``RuntimeError`` where it is not prepared.
    """
    contract = distiller.contract
    null = Distiller(contract, distiller.prior, device=distiller.device)
    null.public_weights = null.anchor_weights = _public(distiller)
    null.round = contract.anchor.rounds
    while not null.finished:
        ask, weights = null.ask()
        seed = request_seed(contract.digest(), "noise", ask.round)
        own = null.sketched(
            cohort_gradients(
                contract=contract,
                network=ask.network,
                weights=weights,
                patients=[null.images],
                seed=seed,
                device=null.device,
            )
        )
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(own.shape, generator=generator).to(own)
        null.absorb([noise * (own.norm(dim=1) / noise.norm(dim=1))[:, None]], patients=[1])
    return null


def _public(distiller: Distiller) -> Tensor:
    if distiller.public_weights is None:
        raise RuntimeError("the free public network is not trained: call prepare() first")
    return distiller.public_weights
