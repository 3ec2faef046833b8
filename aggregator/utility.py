"""What a release is worth: students of every arm, judged on patients nobody trained on.

Arms, each a set of pairs that a fresh student of the contract is trained on:

- ``prior``: what the distilled images stand on. A phantom without texture, or the public start
images.
- ``prior_textured``: textured phantoms, six times as many as distilled images. No hospital's data.
- ``public_direct``: the public images as they are, where the prior is public. No hospital's data.
- ``distilled``: the released pairs, as published.
- ``full``: the hospitals' own slices, which only a demo or a simulation can see.

Controls and ``full`` see eight or more noise draws of every slice, the distilled pairs the one that
was published. ``input`` is the degraded image untouched. Figures are means over patients, then mean
and standard deviation over judge seeds.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from aggregator.distill.prior import PUBLIC_START_PHANTOMS, build_prior, phantoms
from shared.contract import RunContract
from shared.gradients import request_seed
from shared.processes import die_with_parent
from shared.training import Score, evaluate, fit_pairs, noisy_pool

Images = NDArray[np.float32]
OnProgress = Callable[[int, int, float | None], None]
"""Called with (training steps done, in all, seconds left or None)."""

LEAST_DRAWS = 8
LEAST_PAIRS = 96
POLL_S = 0.5
HOSPITAL_ROWS = ("distilled", "full")


@dataclass(frozen=True)
class Arm:
    """One training set: LQ (M, 1, S, S), and HQ of as many or, repeated draw by draw, fewer."""

    name: str
    lq: Tensor
    hq: Tensor


def utility_rows(
    *,
    contract: RunContract,
    pairs: Path,
    train: Sequence[Images],
    holdout: Sequence[Images],
    public: Sequence[Images] | None,
    steps: int,
    seeds: int,
    workers: int,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Trains and judges every arm.

    Args:
        pairs: safetensors file with ``lq`` and ``hq``.
        train: the hospitals' patients, (n, 1, S, S) in window units each, for ``full``.
        holdout: patients that took no part.
        public: public patients, where the contract's prior is public.
        steps: training steps of every student.
        seeds: students an arm.
        workers: processes, one thread each.

    Returns ``rows`` and the figures made of them; ``share_recovered`` is None where hospital data
    was worth nothing over the best control.
    """
    arms = _arms(contract, pairs=pairs, train=train, public=public)
    scores = _judge(
        contract, arms, holdout, steps=steps, seeds=seeds, workers=workers, on_progress=on_progress
    )
    rows = {name: _row(of_seeds) for name, of_seeds in scores.items()}
    return {"rows": rows, **figures({name: row["psnr"]["mean"] for name, row in rows.items()})}


def figures(psnr_db: dict[str, float]) -> dict[str, Any]:
    """``best_null``, ``gap_closed`` and their like, from each row's mean PSNR in dB."""
    nulls = {n: v for n, v in psnr_db.items() if n not in (*HOSPITAL_ROWS, "input")}
    best = max(nulls, key=lambda name: nulls[name])
    distilled, full, prior = psnr_db["distilled"], psnr_db["full"], psnr_db["prior"]
    worth = full - nulls[best]
    return {
        "best_null": best,
        "gain_over_best_null": distilled - nulls[best],
        "worth_of_hospital_data": worth,
        "gap_closed": (distilled - prior) / (full - prior) if full > prior else None,
        "share_recovered": (distilled - nulls[best]) / worth if worth > 0 else None,
    }


def _arms(
    contract: RunContract,
    *,
    pairs: Path,
    train: Sequence[Images],
    public: Sequence[Images] | None,
) -> list[Arm]:
    task = contract.task

    def noisy(name: str, hq: Tensor) -> Arm:
        draws = max(LEAST_DRAWS, LEAST_PAIRS // hq.shape[0])
        seed = request_seed("utility", name)
        return Arm(name, noisy_pool(task, hq, draws=draws, seed=seed), hq)

    shown = None if public is None else torch.from_numpy(np.concatenate(list(public)))
    if contract.prior.kind == "phantom":
        start = phantoms(task, count=contract.images, textured=False)
    else:
        start = build_prior(contract, public=shown).start
    textured = phantoms(task, count=PUBLIC_START_PHANTOMS, textured=True)
    arms = [noisy("prior", start), noisy("prior_textured", textured)]
    if contract.prior.kind != "phantom" and shown is not None:
        arms.append(noisy("public_direct", shown))
    released = load_file(pairs)
    arms.append(Arm("distilled", released["lq"], released["hq"]))
    if train:
        arms.append(noisy("full", torch.from_numpy(np.concatenate(list(train)))))
    return arms


_work: dict[str, Any] = {}
"""What a judging process was started with: set once by its initialiser."""


def _judge(
    contract: RunContract,
    arms: Sequence[Arm],
    holdout: Sequence[Images],
    *,
    steps: int,
    seeds: int,
    workers: int,
    on_progress: OnProgress,
) -> dict[str, list[Score]]:
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    start, total = time.monotonic(), steps * seeds * len(arms)
    jobs: dict[tuple[str, int], Future[Score]] = {}
    with ProcessPoolExecutor(
        workers,
        mp_context=context,
        initializer=_start_judge,
        initargs=(contract, list(arms), list(holdout), counter),
    ) as pool:
        try:
            untouched = pool.submit(_score_input)
            for seed in range(seeds):
                for number, arm in enumerate(arms):
                    jobs[arm.name, seed] = pool.submit(_score_arm, number, steps, seed)
            pending = {untouched, *jobs.values()}
            while pending:
                _, pending = wait(pending, timeout=POLL_S)
                done = min(counter.value, total)
                spent = time.monotonic() - start
                on_progress(done, total, spent * (total - done) / done if done else None)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        scores = {"input": [untouched.result()]}
        scores |= {arm.name: [jobs[arm.name, s].result() for s in range(seeds)] for arm in arms}
    return scores


def _start_judge(
    contract: RunContract, arms: list[Arm], holdout: list[Images], counter: "Synchronized[int]"
) -> None:
    die_with_parent()
    torch.set_num_threads(1)
    patients = [torch.from_numpy(slices) for slices in holdout]
    _work.update(contract=contract, arms=arms, patients=patients, counter=counter)


def _score_input() -> Score:
    contract: RunContract = _work["contract"]
    return _score(contract, None)


def _score_arm(number: int, steps: int, seed: int) -> Score:
    contract: RunContract = _work["contract"]
    arm: Arm = _work["arms"][number]
    counter: Synchronized[int] = _work["counter"]

    def count(done: int, total: int) -> None:
        if done % 20 == 0 or done == total:
            with counter.get_lock():
                counter.value += done % 20 or 20

    weights = fit_pairs(
        lq=arm.lq,
        hq=arm.hq,
        network=contract.student,
        steps=steps,
        seed=request_seed("judge", seed),
        device=torch.device("cpu"),
        on_step=count,
    )
    return _score(contract, weights)


def _score(contract: RunContract, weights: Tensor | None) -> Score:
    return evaluate(
        weights=weights,
        network=contract.student,
        patients=_work["patients"],
        task=contract.task,
        seed=request_seed("judge-noise"),
        device=torch.device("cpu"),
    )


def _row(scores: Sequence[Score]) -> dict[str, dict[str, float | int]]:
    """Mean and spread over judge seeds of the patient means."""
    row: dict[str, dict[str, float | int]] = {}
    for name, of_seeds in (
        ("psnr", [np.mean(score.psnr_db) for score in scores]),
        ("ssim", [np.mean(score.ssim) for score in scores]),
    ):
        spread = float(np.std(of_seeds, ddof=1)) if len(of_seeds) > 1 else 0.0
        row[name] = {"mean": float(np.mean(of_seeds)), "std": spread, "n": len(of_seeds)}
    return row
