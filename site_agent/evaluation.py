"""How well networks do on the patients a site keeps back: a figure a network, coarse."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from shared.contract import RunContract
from shared.judging import MAX_PSNR_DB, PSNR_STEP_DB, SSIM_STEP, in_steps
from shared.messages import FloatArray
from shared.training import enhance, enhance_symmetric, score


def figures_of_networks(
    contract: RunContract,
    *,
    weights: FloatArray,
    anchor: FloatArray | None,
    patients: Sequence[Tensor],
    seed: int,
    device: torch.device,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(PSNR in dB, SSIM), means over ``patients``: of the LQ, each student, and the anchor.

    Args:
        contract: names the networks, and the task that patients (n_i, 1, S, S) are degraded by.
        weights: students (K, D).
        anchor: the anchor network (1, D'), answering as it does for the pairs; or None.
        patients: (n_i, 1, S, S), or real pairs (n_i, 2, S, S), in window units.
        seed: of the degradation, which is the same for every network.
        device: where networks run.

    Before the mean a patient's PSNR is held to 0 to ``MAX_PSNR_DB``: no single one decides it.
    """

    def student(row: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda lq: enhance(contract.student, row, lq)

    restorers: list[Callable[[Tensor], Tensor]] = [lambda lq: lq]
    restorers += [student(row) for row in _on(weights, device)]
    if anchor is not None:
        (row,) = _on(anchor, device)
        answer = enhance_symmetric if contract.anchor.symmetric else enhance
        restorers.append(lambda lq: answer(contract.anchor_network, row, lq))
    psnrs, ssims = [], []
    for restore in restorers:
        scored = score(restore, patients=patients, task=contract.task, seed=seed, device=device)
        held = np.nan_to_num(scored.psnr_db, nan=0.0, posinf=MAX_PSNR_DB, neginf=0.0)
        psnrs.append(in_steps(float(held.clip(0, MAX_PSNR_DB).mean()), PSNR_STEP_DB))
        alike = np.nan_to_num(scored.ssim, nan=0.0)
        ssims.append(in_steps(float(alike.clip(-1, 1).mean()), SSIM_STEP))
    return tuple(psnrs), tuple(ssims)


def _on(rows: FloatArray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(rows, dtype=np.float32)).to(device)
