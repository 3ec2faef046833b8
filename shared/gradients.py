"""What a site computes on raw images: per-patient mean gradients, and descents of local steps.

What is computed of one patient depends on that patient's slices and the request alone, noise and
crops too: a patient who is left out changes nobody else's part. A sum of parts clipped to C thus
moves by at most C, which is all that differential privacy has to know of the method.

A patient's slices are (n, 1, S, S) and are degraded by the contract's task; or they are real pairs
(n, 2, S, S), HQ and LQ, and nothing is degraded.

Pure: images and weights in, one array out. Nothing here reads a file or a socket.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from shared.contract import Kind, Name, RunContract
from shared.networks import apply_network, restoration_loss
from shared.training import fit_pairs, noisy_pool

POOL_DRAWS = 8
"""Noise realisations of each slice that local steps sample from."""


ROUNDING = 1e-9
"""Of a patient's bound, left for the rounding of sums in float64."""


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


def patient_parts(
    *,
    contract: RunContract,
    kind: Kind,
    network: Name,
    weights: Tensor,
    patients: Sequence[Tensor],
    seed: int,
    device: torch.device,
    basis: Tensor | None = None,
) -> Iterator[Tensor]:
    """What a request for ``weights`` (K, D) asks of one patient after the other, unclipped: (K, D).

    ``patients`` are P times (n_i, 1 or 2, S, S) in window units. Local steps stay in the span of
    the rows of ``basis`` (k, D), where one is given. Raises ``ValueError`` on no patients.
    """
    if not patients:
        raise ValueError("a cohort needs at least one patient")
    weights = weights.to(device)
    for slices in patients:
        own = request_seed(seed, hashlib.sha256(slices.cpu().numpy().tobytes()).hexdigest())
        images = slices.to(device)
        if kind == "gradients":
            yield _gradients(contract, network, weights, images, own)
        else:
            yield _descents(contract, network, weights, images, own, basis)


def pairs_of(
    contract: RunContract, slices: Tensor, *, draws: int, seed: int
) -> tuple[Tensor, Tensor]:
    """LQ (M, 1, S, S), and the HQ (N, 1, S, S) that it repeats draw-major.

    ``slices`` are (N, 1, S, S), degraded ``draws`` times; or (N, 2, S, S), real pairs of HQ and LQ.
    """
    if slices.shape[1] == 2:
        return slices[:, 1:], slices[:, :1]
    return noisy_pool(contract.task, slices, draws=draws, seed=seed), slices


def _gradients(
    contract: RunContract, network: Name, weights: Tensor, slices: Tensor, seed: int
) -> Tensor:
    """Mean gradients (K, D) over one patient's slices."""
    lq, hq = pairs_of(contract, slices, draws=contract.probes.draws, seed=seed)
    hq = hq.repeat(lq.shape[0] // hq.shape[0], 1, 1, 1)
    rows = [
        patient_gradient(contract=contract, network=network, weights=theta, lq=lq, hq=hq)
        for theta in weights
    ]
    return torch.stack(rows)


def _descents(
    contract: RunContract,
    network: Name,
    weights: Tensor,
    slices: Tensor,
    seed: int,
    basis: Tensor | None,
) -> Tensor:
    """``weights`` (K, D) minus the weights after local steps on slices: (K, D)."""
    plan = contract.anchor
    lq, hq = pairs_of(contract, slices, draws=POOL_DRAWS, seed=seed)
    after = [
        fit_pairs(
            lq=lq,
            hq=hq,
            network=contract.network(network),
            steps=plan.local_steps,
            seed=seed,
            device=weights.device,
            start=theta,
            learning_rate=plan.learning_rate,
            batch=plan.batch,
            crop_px=plan.crop_px,
            within=basis,
        )
        for theta in weights
    ]
    return weights - torch.stack(after)


def patient_sum(parts: Iterable[Tensor], *, bound: float) -> Tensor:
    """Sum (K, R), in float64, of patients' parts (K, R), each clipped to ``bound`` as a whole.

    With or without any one patient it differs by at most ``bound`` in L2 norm. A part that is not
    finite counts as zero. Raises ``ValueError`` on no parts.
    """
    total: Tensor | None = None
    for part in parts:
        clipped = clip(part.double(), norm=bound * (1 - ROUNDING))
        total = clipped if total is None else total + clipped
    if total is None:
        raise ValueError("a cohort needs at least one patient")
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

    ``patients`` are P times (n_i, 1 or 2, S, S) in window units. Raises ``ValueError`` on none.
    """
    parts = patient_parts(
        contract=contract,
        kind="gradients",
        network=network,
        weights=weights,
        patients=patients,
        seed=seed,
        device=device,
    )
    return torch.stack([_rows_clipped(part, contract) for part in parts])


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
    for part in patient_parts(
        contract=contract,
        kind="gradients",
        network=network,
        weights=weights,
        patients=patients,
        seed=seed,
        device=device,
    ):
        total += _rows_clipped(part, contract)
    return total / len(patients)


def _rows_clipped(part: Tensor, contract: RunContract) -> Tensor:
    """One patient's gradients (K, D), each row by itself: no row counts more than its bound."""
    return torch.stack([clip(row, norm=contract.row_bound("gradients")) for row in part])


def local_descent(
    *,
    contract: RunContract,
    network: Name,
    weights: Tensor,
    patients: Sequence[Tensor],
    seed: int,
    device: torch.device,
    basis: Tensor | None = None,
) -> Tensor:
    """``weights`` (D,) minus the weights after ``local_steps`` steps on the cohort: (D,), clipped.

    The accumulated gradient of E local steps, as each step's optimiser scaled it (Adam, cosine),
    on everybody's slices at once; in the span of ``basis`` (k, D) where one is given.
    Slices are weighted so that every patient is seen equally often. Raises ``ValueError`` on no
    patients.
    """
    if not patients:
        raise ValueError("a cohort needs at least one patient")
    # Each patient contributes the same number of slices to the pool, by repetition.
    most = min(max(len(slices) for slices in patients), 8)
    picked = [slices[torch.arange(most) % len(slices)] for slices in patients]
    together = torch.cat(picked).to(device)
    descents = _descents(contract, network, weights[None].to(device), together, seed, basis)
    return clip(descents[0], norm=contract.row_bound("local-steps"))
