"""What a site computes on raw images: per-patient mean gradients, and descents of local steps.

Pure: images and weights in, one array out. Nothing here reads a file or a socket.
"""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from shared.contract import Name, RunContract
from shared.networks import apply_network, restoration_loss
from shared.training import fit_pairs, noisy_pool

POOL_DRAWS = 8
"""Noise realisations of each slice that local steps sample from."""


def request_seed(*parts: str | int) -> int:
    """A 63-bit seed that depends on all parts and on nothing else, on every platform."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def clip(vector: Tensor, *, norm: float) -> Tensor:
    """``vector`` scaled down to L2 norm at most ``norm``; zeros where it is not finite."""
    if not bool(torch.isfinite(vector).all()):
        return torch.zeros_like(vector)
    return vector * torch.clamp(norm / vector.norm().clamp_min(1e-30), max=1.0)


def patient_gradient(
    *, contract: RunContract, network: Name, weights: Tensor, lq: Tensor, hq: Tensor
) -> Tensor:
    """Gradient (D,) at ``weights`` of the mean loss over one patient's (n, 1, S, S) slices."""
    leaf = weights.detach().clone().requires_grad_(True)
    description = contract.network(network)
    total = torch.zeros_like(leaf)
    for inputs, targets in zip(torch.split(lq, 8), torch.split(hq, 8), strict=True):
        loss = restoration_loss(apply_network(description, leaf, inputs), targets)
        (gradient,) = torch.autograd.grad(loss, leaf)
        total += gradient * (inputs.shape[0] / lq.shape[0])
    return total


def patient_gradients(
    *,
    contract: RunContract,
    network: Name,
    weights: Tensor,
    patients: Sequence[Tensor],
    seed: int,
    device: torch.device,
) -> Tensor:
    """Each patient's clipped mean gradient at each of ``weights`` (K, D): (P, K, D).

    ``patients`` are P times (n_i, 1, S, S) in window units. Raises ``ValueError`` on no patients.
    """
    return torch.stack(
        list(
            _each_patient(
                contract=contract,
                network=network,
                weights=weights,
                patients=patients,
                seed=seed,
                device=device,
            )
        )
    )


def cohort_gradients(
    *,
    contract: RunContract,
    network: Name,
    weights: Tensor,
    patients: Sequence[Tensor],
    seed: int,
    device: torch.device,
) -> Tensor:
    """Mean over patients of ``patient_gradients``, none of which is kept: (K, D).

    Every patient counts the same, however many slices it has, and moves the mean by at most
    ``2 * probes.clip_norm / patients``. Raises ``ValueError`` on no patients.
    """
    total = torch.zeros_like(weights, device=device)
    for gradients in _each_patient(
        contract=contract,
        network=network,
        weights=weights,
        patients=patients,
        seed=seed,
        device=device,
    ):
        total += gradients
    return total / len(patients)


def _each_patient(
    *,
    contract: RunContract,
    network: Name,
    weights: Tensor,
    patients: Sequence[Tensor],
    seed: int,
    device: torch.device,
) -> Iterator[Tensor]:
    if not patients:
        raise ValueError("a cohort needs at least one patient")
    draws = contract.probes.draws
    for number, slices in enumerate(patients):
        hq = slices.to(device)
        lq = noisy_pool(contract.task, hq, draws=draws, seed=request_seed(seed, number))
        repeated = hq.repeat(lq.shape[0] // hq.shape[0], 1, 1, 1)
        rows = [
            patient_gradient(contract=contract, network=network, weights=theta, lq=lq, hq=repeated)
            for theta in weights.to(device)
        ]
        yield torch.stack([clip(row, norm=contract.probes.clip_norm) for row in rows])


def local_descent(
    *,
    contract: RunContract,
    network: Name,
    weights: Tensor,
    patients: Sequence[Tensor],
    seed: int,
    device: torch.device,
) -> Tensor:
    """``weights`` (D,) minus the weights after ``local_steps`` steps on the cohort: (D,), clipped.

    The accumulated gradient of E local steps, as each step's optimiser scaled it (Adam, cosine).
    Slices are weighted so that every patient is seen equally often. Raises ``ValueError`` on no
    patients.
    """
    if not patients:
        raise ValueError("a cohort needs at least one patient")
    plan = contract.anchor
    # Each patient contributes the same number of slices to the pool, by repetition.
    most = min(max(len(slices) for slices in patients), 8)
    picked = [slices[torch.arange(most) % len(slices)] for slices in patients]
    hq = torch.cat(picked).to(device)
    lq = noisy_pool(contract.task, hq, draws=POOL_DRAWS, seed=seed)
    after = fit_pairs(
        lq=lq,
        hq=hq,
        network=contract.network(network),
        steps=plan.local_steps,
        seed=seed,
        device=device,
        start=weights,
        learning_rate=plan.learning_rate,
        batch=plan.batch,
        crop_px=plan.crop_px,
    )
    return clip(weights.to(device) - after, norm=plan.clip_norm)
