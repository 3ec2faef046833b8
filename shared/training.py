"""Fitting an enhancement network to pairs, and scoring it on patients.

One recipe for every party and every arm of a comparison: Adam with a cosine to zero, random crops,
the eight dihedral transforms, mean squared error. Everything random follows from the seed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.architectures import Network
from shared.images import psnr_db, ssim
from shared.networks import apply_network, initial_weights, restoration_loss
from shared.tasks.degradation import degrade, level_of, observe, parts
from shared.tasks.settings import Task

BATCH = 4
CROP_PX = 32
"""Small batches: a step still sees thousands of pixels, and steps are what convergence takes."""
LEARNING_RATE = 2e-3
GRADIENT_CEILING = 1.0
"""L2 norm above which a training step's gradient is scaled down: rescues a rare bad batch."""

OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


@dataclass(frozen=True)
class Score:
    """Image quality on held-out patients: one value a patient, the mean over its slices."""

    psnr_db: list[float]
    ssim: list[float]


def noisy_pool(task: Task, hq: Tensor, *, draws: int, seed: int) -> Tensor:
    """``draws`` degraded versions of ``hq`` (N, 1, S, S): (draws * N, 1, S, S), draw-major.

    Each slice is projected once; a training that sees a pool of eight or more realisations ends
    where one with fresh noise does, for a fraction of the time. Draw d is of part d mod T of a
    multi-task of T parts; ``draws`` is then raised to a multiple of T, so that every part has the
    same number: the pool may be longer than asked for.
    """
    generator = torch.Generator().manual_seed(seed)
    single = parts(task)
    draws = math.ceil(draws / len(single)) * len(single)
    pools = []
    for chunk in torch.split(hq, 16):
        levels = [level_of(part, chunk) for part in single]
        turns = [number % len(single) for number in range(draws)]
        drawn = [observe(single[k], chunk, levels[k], generator=generator) for k in turns]
        pools.append(torch.stack(drawn))
    return torch.cat(pools, dim=1).flatten(0, 1)


def sample_batch(
    lq: Tensor, hq: Tensor, *, batch: int, crop_px: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random crops of random pairs under random dihedral transforms: two (batch, 1, c, c).

    ``lq`` and ``hq`` are (M, 1, S, S); ``hq`` may be shorter, when ``lq`` repeats it draw-major.
    """
    count, size = lq.shape[0], lq.shape[-1]
    crop = min(crop_px, size)
    picks = torch.randint(count, (batch,), generator=generator).tolist()
    corners = torch.randint(size - crop + 1, (batch, 2), generator=generator).tolist()
    turns = torch.randint(8, (batch,), generator=generator).tolist()
    inputs: list[Tensor] = []
    targets: list[Tensor] = []
    for pick, (row, column), turn in zip(picks, corners, turns, strict=True):
        for source, index, out in ((lq, pick, inputs), (hq, pick % hq.shape[0], targets)):
            patch = source[index, :, row : row + crop, column : column + crop]
            out.append(dihedral(patch, turn))
    return torch.stack(inputs), torch.stack(targets)


def dihedral(image: Tensor, turn: int) -> Tensor:
    """One of the eight symmetries of the square applied to (..., H, W); ``turn`` in 0..7."""
    turned = torch.rot90(image, turn % 4, dims=(-2, -1))
    return turned.flip(-1) if turn >= 4 else turned


def turned_back(image: Tensor, turn: int) -> Tensor:
    """The inverse of :func:`dihedral`, exactly: every pixel where it was."""
    straight = image.flip(-1) if turn >= 4 else image
    return torch.rot90(straight, -(turn % 4), dims=(-2, -1))


def fit_pairs(
    *,
    lq: Tensor,
    hq: Tensor,
    network: Network,
    steps: int,
    seed: int,
    device: torch.device,
    start: Tensor | None = None,
    learning_rate: float = LEARNING_RATE,
    batch: int = BATCH,
    crop_px: int = CROP_PX,
    within: Tensor | None = None,
    checkpoints: Sequence[int] = (),
    on_step: OnStep | None = None,
) -> Tensor:
    """Trains ``network`` on pairs (M, 1, S, S) and returns its flat weights (D,), on ``device``.

    With ``checkpoints`` (ascending numbers of steps, the last at most ``steps``) the weights after
    each are returned instead, (len, D). ``start`` replaces the initial weights of ``seed``.

    ``within``, orthonormal directions (k, D), confines it to the start plus their span: Adam then
    scales steps along each of them, sqrt(D / k) times as long, so that a whole step is as long as
    one of all weights.
    """
    generator = torch.Generator().manual_seed(seed)
    first = initial_weights(network, seed=seed) if start is None else start
    first = first.detach().clone().to(device)
    moved, rate = first.clone(), learning_rate
    if within is not None:
        within = within.to(device)
        moved = first.new_zeros(len(within))
        rate *= (first.numel() / len(within)) ** 0.5
    moved.requires_grad_(True)

    def weights() -> Tensor:
        return moved if within is None else first + moved @ within

    lq, hq = lq.to(device), hq.to(device)
    optimiser = torch.optim.Adam([moved], lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=max(steps, 1))
    kept = [weights().detach().clone() for depth in checkpoints if depth == 0]
    for step in range(1, steps + 1):
        inputs, targets = sample_batch(lq, hq, batch=batch, crop_px=crop_px, generator=generator)
        loss = restoration_loss(apply_network(network, weights(), inputs), targets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([moved], GRADIENT_CEILING)
        optimiser.step()
        schedule.step()
        kept += [weights().detach().clone() for depth in checkpoints if depth == step]
        if on_step is not None:
            on_step(step, steps)
    return torch.stack(kept) if checkpoints else weights().detach()


def enhance(network: Network, weights: Tensor, lq: Tensor) -> Tensor:
    """``network`` applied to (N, 1, S, S) without a graph, a few slices at a time."""
    with torch.no_grad():
        return torch.cat([apply_network(network, weights, chunk) for chunk in torch.split(lq, 16)])


def enhance_symmetric(network: Network, weights: Tensor, lq: Tensor) -> Tensor:
    """The mean of ``network``'s answers to (N, 1, S, S) over the square's eight symmetries.

    The geometric self-ensemble (Timofte, Rothe, Van Gool, CVPR 2016, sec. 3.6): each transform's
    answer is transformed back. What the network gets right in one orientation alone is averaged.
    """
    total = torch.zeros_like(lq)
    for turn in range(8):
        total += turned_back(enhance(network, weights, dihedral(lq, turn)), turn)
    return total / 8


def evaluate(
    *,
    weights: Tensor | None,
    network: Network,
    patients: Sequence[Tensor],
    task: Task,
    seed: int,
    device: torch.device,
) -> Score:
    """Scores ``weights`` (``None``: the degraded input untouched) on patients of (n_i, 1, S, S)."""
    on_device = None if weights is None else weights.to(device)

    def restore(lq: Tensor) -> Tensor:
        return lq if on_device is None else enhance(network, on_device, lq)

    return score(restore, patients=patients, task=task, seed=seed, device=device)


def score(
    restore: Callable[[Tensor], Tensor],
    *,
    patients: Sequence[Tensor],
    task: Task,
    seed: int,
    device: torch.device,
) -> Score:
    """Scores what ``restore`` makes of degraded patients (n_i, 1, S, S).

    The degradation of a patient's slices follows from ``seed`` alone, so that whatever is scored is
    comparable patient by patient. Of real pairs (n_i, 2, S, S), HQ and LQ, nothing is degraded.
    """
    psnrs, ssims = [], []
    for number, slices in enumerate(patients):
        hq, real = slices[:, :1].to(device), slices[:, 1:].to(device)
        if real.shape[1]:
            lq = real
        else:
            lq = torch.cat([degrade(part, hq, seed=seed + number) for part in parts(task)])
        output = restore(lq)
        references = hq[:, 0].repeat(len(lq) // len(hq), 1, 1).cpu().numpy()
        images = output[:, 0].cpu().numpy()
        pairs = list(zip(images, references, strict=True))
        psnrs.append(sum(psnr_db(image, reference) for image, reference in pairs) / len(pairs))
        ssims.append(sum(ssim(image, reference) for image, reference in pairs) / len(pairs))
    return Score(psnr_db=psnrs, ssim=ssims)
