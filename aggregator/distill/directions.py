"""What stands before any hospital is asked: the free public network, and public directions.

The directions are those in which public images, as they are and varied, pull that network: each
stands for a patient and descends for as many local steps as a contract's patients do, at the same
rate, batch and crop; their first principal directions, not centred, are the basis that hospitals'
descents are projected on (the idea of Zhou, Wu and Banerjee, "Bypassing the Ambient Dimension",
ICLR 2021, with descents in place of gradients).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregator.distill.prior import Prior, PriorError
from aggregator.distill.variants import varied
from shared.contract import RunContract
from shared.gradients import patient_parts, request_seed
from shared.subspace import principal_directions, project
from shared.training import fit_pairs, noisy_pool
from shared.trajectory import start_seed

FREE_POOL_DRAWS = 4

OnStep = Callable[[str, int, int], None]
"""Called with (phase, steps done, steps in all)."""


@dataclass(frozen=True, eq=False)
class Foundation:
    """The free public network (D,), and the directions (k, D) where the contract has some."""

    public_weights: Tensor
    basis: Tensor | None
    spread: Tensor | None = None
    """Mean square (k,) of public descents along each direction."""


def free_network(
    contract: RunContract, prior: Prior, *, device: torch.device, on_step: OnStep
) -> Tensor:
    """The anchor network's weights (D,) after training on what is free, and nothing else."""
    seed, free = start_seed(contract, kind="local-steps", round=1), prior.free.to(device)
    return fit_pairs(
        lq=noisy_pool(contract.task, free, draws=FREE_POOL_DRAWS, seed=seed),
        hq=free,
        network=contract.anchor_network,
        steps=contract.anchor.public_steps,
        seed=seed,
        device=device,
        on_step=lambda done, total: on_step("public", done, total),
    )


def public_directions(
    contract: RunContract,
    prior: Prior,
    public_weights: Tensor,
    *,
    device: torch.device,
    on_step: OnStep,
) -> tuple[Tensor, Tensor]:
    """The contract's basis (k, D), of the descents of all that is free, an image a patient.

    As it is and varied, as hospitals' images may differ from it. And the mean square (k,) of those
    descents along each direction. Raises ``PriorError`` where there
    are not as many images as directions.
    """
    seed = request_seed(contract.foundation(), "directions")
    shown = torch.cat([prior.free, varied(prior.free, seed=seed)])
    count, images = contract.privacy.directions, len(shown)
    if images < count:
        raise PriorError(
            f"privacy.directions {count} need as many public images, there are {images}, varied: "
            "ask for fewer, or give more volumes with --public"
        )
    descents = []
    for descent in patient_parts(
        contract=contract,
        kind="local-steps",
        network="anchor",
        weights=public_weights[None],
        patients=list(shown[:, None]),
        seed=seed,
        device=device,
    ):
        # A long descent that fell out of bounds must not decide about all directions.
        descents.append(torch.nan_to_num(descent[0], nan=0.0, posinf=0.0, neginf=0.0))
        on_step("directions", len(descents), images)
    every = torch.stack(descents)
    basis = principal_directions(every, count=count)
    return basis, project(basis.to(every), every).square().mean(dim=0)
