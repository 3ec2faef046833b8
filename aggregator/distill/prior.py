"""The shared anatomical prior: where distilled images start; never an enrolled patient."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aggregator.distill.phantom import chest_phantoms
from shared.contract import RunContract
from shared.images import window
from shared.tasks.settings import CtDenoise

PHANTOM_SEED = 20_251_113
PUBLIC_START_PHANTOMS = 48
"""Phantoms that the free public network is trained on."""


class PriorError(ValueError):
    """The contract's prior cannot be made from what is there; the text says what is missing."""


@dataclass(frozen=True)
class Prior:
    """Images that no hospital gave."""

    start: Tensor  # (N, 1, S, S), one a distilled image
    free: Tensor  # (M, 1, S, S), what the public network may be trained on
    provenance: dict[str, Any]


def phantoms(task: CtDenoise, *, count: int, textured: bool) -> Tensor:
    """Procedural chest slices in window units: (count, 1, S, S)."""
    hu = chest_phantoms(count=count, size_px=task.size_px, seed=PHANTOM_SEED, textured=textured)
    return torch.from_numpy(window(hu, low_hu=task.window[0], high_hu=task.window[1]))


def covering(images: Tensor, count: int) -> Tensor:
    """``count`` of (M, 1, S, S), evenly spread over their order; repeats where M is smaller."""
    return images[torch.linspace(0, images.shape[0] - 1, count).round().long()]


def build_prior(contract: RunContract, *, public: Tensor | None) -> Prior:
    """The prior a contract names. ``public`` is (M, 1, S, S) in window units.

    Raises ``PriorError`` where the contract wants a public prior and none was given.
    """
    task = contract.task
    free = phantoms(task, count=max(PUBLIC_START_PHANTOMS, contract.images), textured=True)
    if contract.prior.kind == "phantom":
        provenance = {"kind": "procedural phantom", "anatomy": "chest", "seed": PHANTOM_SEED}
        return Prior(free[: contract.images], free, provenance)
    if public is None or public.shape[0] == 0:
        raise PriorError(
            f"the contract's prior is '{contract.prior.kind}': give the folder of public images"
        )
    half = contract.images // 2
    start = torch.cat([covering(public, contract.images - half), free[:half]])
    provenance = {
        "kind": "public volumes and procedural phantom",
        "public_slices": int(public.shape[0]),
        "phantom_seed": PHANTOM_SEED,
    }
    return Prior(start, torch.cat([public, free[: free.shape[0] // 2]]), provenance)
