"""The shared anatomical prior: where distilled images start; never an enrolled patient."""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from aggregator.distill.phantom import PERSONS, phantom_slices
from shared.contract import RunContract
from shared.images import window

PHANTOM_SEED = 20_251_113
PUBLIC_START_PHANTOMS = 48
"""Phantoms that the free public network is trained on."""
MOST_COMPARED = 2048
"""Images among which ``covering`` chooses; of more, as many evenly spaced ones."""
_CELLS = 8


class PriorError(ValueError):
    """The contract's prior cannot be made from what is there; the text says what is missing."""


@dataclass(frozen=True)
class Prior:
    """Images that no hospital gave."""

    start: Tensor  # (N, 1, S, S), one a distilled image
    free: Tensor  # (M, 1, S, S), what the public network may be trained on
    provenance: dict[str, Any]


def phantoms(contract: RunContract, *, count: int, textured: bool) -> Tensor:
    """Procedural slices of the contract's anatomy and modality: (count, 1, S, S), window units."""
    task = contract.task
    stored = phantom_slices(
        anatomy=contract.prior.anatomy,
        modality=task.modality,
        count=count,
        size_px=task.size_px,
        seed=PHANTOM_SEED,
        textured=textured,
    )
    low, high = task.window
    return torch.from_numpy(window(stored, low_hu=low, high_hu=high))


def covering(images: Tensor, count: int) -> Tensor:
    """``count`` of (M, 1, S, S) that stand for all of them; repeats only where M is smaller.

    Greedy k-medoids (facility location, within 1 - 1/e of the best gain): each choice is the image
    that most lowers the sum over all images of the squared distance to the nearest chosen one.
    Distances are between coarse maps of brightness and of edges. The same images give the same
    choice, and a larger choice begins with the smaller one.
    """
    pool = images
    if images.shape[0] > MOST_COMPARED:
        pool = images[torch.linspace(0, images.shape[0] - 1, MOST_COMPARED).round().long()]
    seen = _features(pool.double())
    apart = torch.cdist(seen, seen).square()
    nearest = torch.full_like(apart[0], float(apart.max()) * 2 + 1)
    chosen: list[int] = []
    for _ in range(min(count, pool.shape[0])):
        gain = (nearest[None] - apart).clamp_min(0).sum(dim=1)
        gain[chosen] = -1
        # The first of equals, however the sums were rounded.
        best = int((gain >= gain.max() * (1 - 1e-9)).nonzero()[0])
        chosen.append(best)
        nearest = torch.minimum(nearest, apart[best])
    return pool[torch.tensor([chosen[number % len(chosen)] for number in range(count)])]


def _features(images: Tensor) -> Tensor:
    """(M, F): brightness and edge strength in 8 × 8 cells, each map scaled to unit variance."""
    cells = min(_CELLS, images.shape[-1])
    across = (images[..., :, 1:] - images[..., :, :-1]).abs()
    down = (images[..., 1:, :] - images[..., :-1, :]).abs()
    maps = [images]
    if images.shape[-1] > 1:
        maps.append(across[..., 1:, :] + down[..., :, 1:])
    parts = []
    for one in maps:
        pooled = adaptive_avg_pool2d(one, cells).flatten(1)
        parts.append(pooled / pooled.std(dim=0).square().mean().sqrt().clamp_min(1e-12))
    return torch.cat(parts, dim=1)


def build_prior(contract: RunContract, *, public: Tensor | None) -> Prior:
    """The prior a contract names.

    Args:
        public: (M, 1, S, S) in window units: openly licensed images, or the volume of the
            consenting person; not needed where the prior is a phantom.

    Raises ``PriorError`` where the contract's prior needs images and there are none, or their
    licence is not stated.
    """
    named = contract.prior
    drawn = phantoms(contract, count=max(PUBLIC_START_PHANTOMS, contract.images), textured=True)
    about: dict[str, Any] = {
        "kind": named.kind,
        "anatomy": named.anatomy,
        "textured": named.textured,
        "license": named.license,
        "statement": named.statement,
        "modality": contract.task.modality,
        "phantom_seed": PHANTOM_SEED,
        "phantom_slices": int(drawn.shape[0]),
        "phantom_persons": min(PERSONS, int(drawn.shape[0])),
    }
    if named.kind == "phantom":
        pool = drawn
        if not named.textured:
            pool = phantoms(contract, count=drawn.shape[0], textured=False)
        return Prior(covering(pool, contract.images), drawn, about)
    if public is None or public.shape[0] == 0:
        raise PriorError(
            f"the contract's prior is '{named.kind}': give the folder of public images"
            if named.kind != "consented"
            else "the contract's prior is 'consented': give the folder of that person's images"
        )
    if named.kind in ("public", "both") and not named.license:
        raise PriorError(
            f"the contract's prior is '{named.kind}' and states no licence: set prior.license to "
            'the SPDX identifier of the public images, such as "CC-BY-4.0"'
        )
    if named.kind == "both":
        half = contract.images // 2
        start = torch.cat([covering(public, contract.images - half), covering(drawn, half)])
    else:
        start = covering(public, contract.images)
    about["public_slices"] = int(public.shape[0])
    about["public_sha256"] = hashlib.sha256(public.contiguous().cpu().numpy().tobytes()).hexdigest()
    return Prior(start, torch.cat([public, drawn]), about)
