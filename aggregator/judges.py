"""Judging training sets: a fresh student of every arm and seed, scored on patients nobody used.

Trainings run in processes of one thread each. Each is written to the cache when it ends, under a
name that follows from all it depends on (set, network, task, steps, seed, judged patients): what
was interrupted goes on, and benchmarks that share a cache share their trainings.
"""

import hashlib
import json
import multiprocessing
import pickle
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from aggregator.arms import Arm, Distillation, Images, Teacher, training_sets
from aggregator.distill.prior import Prior
from aggregator.utility import ROWS, anchor_gain, figures, pairs_digest, row
from shared import training
from shared.architectures import Network
from shared.contract import RunContract
from shared.durable import write_durably
from shared.frozen import canonical_json
from shared.gradients import request_seed
from shared.processes import die_with_parent
from shared.tasks.settings import Task
from shared.training import Score, fit_pairs, score

OnProgress = Callable[[int, int, float | None], None]
"""Called with (training steps done, in all, seconds left or None)."""

POLL_S = 0.5
RECIPE = {
    "version": 1,
    "batch": training.BATCH,
    "crop_px": training.CROP_PX,
    "learning_rate": training.LEARNING_RATE,
}
"""What else a cached training depends on; ``version`` changes with the meaning of the figures."""


@dataclass(frozen=True)
class Judge:
    """How every arm is trained and where: the same for all of a table."""

    task: Task
    network: Network
    steps: int
    seeds: int
    workers: int = 1
    device: str = "cpu"


@dataclass(frozen=True)
class Judged:
    """One training's scores, and the seconds of it."""

    score: Score
    seconds: float


BEGINNING = "public_network"
"""Beside the rows: the network that the anchor began as, itself."""


def utility_rows(
    *,
    contract: RunContract,
    distillations: Sequence[Distillation],
    prior: Prior,
    train: Sequence[Images],
    holdout: Sequence[Images],
    public: Sequence[Images] | None,
    judge: Judge,
    cache: Path,
    rows: Collection[str] = ROWS,
    every_variant: bool = True,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Trains and judges; gives ``rows`` and the figures made of them.

    Args:
        contract: of the first distillation.
        distillations: the released pairs, and what belongs to each.
        prior: of the contract.
        train: the hospitals' training patients, (n, 1, S, S) in window units each.
        holdout: patients that took no part.
        public: public patients, where there are any.
        judge: the student and how long it is trained.
        cache: folder of finished trainings.
        rows: those wanted.
        every_variant: judge every variant of a null and take the best.
        on_progress: told now and then.
    """
    arms = training_sets(
        rows,
        contract=contract,
        distillations=distillations,
        prior=prior,
        train=train,
        public=public,
        every_variant=every_variant,
    )
    if "anchor" in rows:
        arms += [Arm(BEGINNING, teacher=one.public) for one in distillations if one.public]
    judged = judge_arms(arms, holdout, judge=judge, cache=cache, on_progress=on_progress)
    made = table_rows(arms, judged)
    beginning = made.pop(BEGINNING, None)
    return {
        "rows": made,
        **figures(made),
        **anchor_gain(made.get("anchor"), beginning),
        "judge": judge.network.model_dump(mode="json"),
        "steps": judge.steps,
        "judge_seeds": judge.seeds,
        "distillations": len(distillations),
        "pairs_sha256": [pairs_digest(one.lq.numpy(), one.hq.numpy()) for one in distillations],
        # As float32 at the task's size, both: the pairs as a release has them.
        "bytes_published": distillations[0].lq.nbytes + distillations[0].hq.nbytes,
        "bytes_raw": sum(slices.nbytes for slices in train),
        "judged_patients": len(holdout),
        "judged_slices": sum(len(slices) for slices in holdout),
        "judging_seconds": round(sum(one.seconds for of_arm in judged for one in of_arm), 2),
    }


def table_rows(arms: Sequence[Arm], judged: Sequence[Sequence[Judged]]) -> dict[str, Any]:
    """A row a name, over all its runs; of a row's variants the one of the highest mean PSNR."""
    runs: dict[str, dict[str, list[Judged]]] = defaultdict(lambda: defaultdict(list))
    for arm, of_arm in zip(arms, judged, strict=True):
        runs[arm.name][arm.variant] += of_arm
    rows = {}
    for name, variants in runs.items():
        candidates = [
            row(
                [one.score.psnr_db for one in of_variant],
                [one.score.ssim for one in of_variant],
                **({"variant": variant} if variant else {}),
            )
            for variant, of_variant in variants.items()
        ]
        rows[name] = max(candidates, key=lambda one: float(one["psnr"]["mean"]))
        if len(candidates) > 1:
            rows[name]["variants"] = {one["variant"]: one["psnr"] for one in candidates}
    return rows


def judge_arms(
    arms: Sequence[Arm],
    holdout: Sequence[Images],
    *,
    judge: Judge,
    cache: Path,
    on_progress: OnProgress,
) -> list[list[Judged]]:
    """Each arm's trainings, one a seed; one scoring of an arm that is not trained on."""
    jobs = [
        (number, seed)
        for seed in range(judge.seeds)
        for number, arm in enumerate(arms)
        if seed == 0 or arm.hq is not None
    ]
    judged_on = _digest_of(holdout)
    names = {job: _name(arms[job[0]], judge, job[1], judged_on) for job in jobs}
    found = {job: _read(cache / names[job]) for job in jobs}
    todo = [job for job in jobs if found[job] is None]
    if todo:
        _work_off(todo, arms, holdout, judge, cache, names, on_progress, total=len(jobs))
        found |= {job: _read(cache / names[job]) for job in todo}
    result: list[list[Judged]] = [[] for _ in arms]
    for (number, _), one in found.items():
        if one is None:
            raise RuntimeError(f"{cache}: a finished training cannot be read back; is it writable?")
        result[number].append(one)
    return result


def _work_off(
    todo: Sequence[tuple[int, int]],
    arms: Sequence[Arm],
    holdout: Sequence[Images],
    judge: Judge,
    cache: Path,
    names: dict[tuple[int, int], str],
    on_progress: OnProgress,
    *,
    total: int,
) -> None:
    """Does the jobs in processes; all of them are ended when this is left, however it is."""
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    start = time.monotonic()
    to_do = judge.steps * sum(arms[number].hq is not None for number, _ in todo)
    cached = judge.steps * (total - len(todo))
    # As one string of bytes: as tensors each would take a file descriptor of every process.
    shipped = pickle.dumps((judge, list(arms), [np.asarray(one) for one in holdout]))
    with ProcessPoolExecutor(
        max(1, min(judge.workers, len(todo))),
        mp_context=context,
        initializer=_start_judge,
        initargs=(shipped, cache, counter),
    ) as pool:
        try:
            pending: set[Future[None]] = {
                pool.submit(_judge_job, number, seed, names[number, seed]) for number, seed in todo
            }
            while pending:
                finished, pending = wait(pending, timeout=POLL_S)
                for future in finished:
                    future.result()
                done = min(counter.value, to_do)
                spent = time.monotonic() - start
                left = spent * (to_do - done) / done if done else None
                on_progress(cached + done, cached + to_do, left)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


_work: dict[str, Any] = {}
"""What a judging process was started with: set once by its initialiser."""


def _start_judge(shipped: bytes, cache: Path, counter: "Synchronized[int]") -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    torch.set_num_threads(1)
    judge, arms, holdout = pickle.loads(shipped)
    patients = [torch.from_numpy(slices) for slices in holdout]
    _work.update(judge=judge, arms=arms, patients=patients, cache=cache, counter=counter)


def _judge_job(number: int, seed: int, name: str) -> None:
    judge: Judge = _work["judge"]
    arm: Arm = _work["arms"][number]
    started = time.monotonic()
    teacher = arm.teacher if arm.hq is None else _trained(number, seed)
    scored = score(
        _untouched if teacher is None else teacher.restore,
        patients=_work["patients"],
        task=judge.task,
        seed=request_seed("judge-noise"),
        device=torch.device(judge.device),
    )
    entry = {
        "psnr_db": scored.psnr_db,
        "ssim": scored.ssim,
        "seconds": round(time.monotonic() - started, 3),
    }
    write_durably(_work["cache"] / name, json.dumps(entry).encode())


def _trained(number: int, seed: int) -> Teacher:
    judge: Judge = _work["judge"]
    counter: Synchronized[int] = _work["counter"]

    def count(done: int, total: int) -> None:
        if done % 20 == 0 or done == total:
            with counter.get_lock():
                counter.value += done % 20 or 20

    lq, hq = _pairs(number)
    weights = fit_pairs(
        lq=lq,
        hq=hq,
        network=judge.network,
        steps=judge.steps,
        seed=request_seed("judge", seed),
        device=torch.device(judge.device),
        on_step=count,
    )
    return Teacher(judge.network, weights, symmetric=False)


@lru_cache(maxsize=1)
def _pairs(number: int) -> tuple[Tensor, Tensor]:
    """An arm's pairs; those with a teacher's targets, which take a while, are made once for all."""
    arm: Arm = _work["arms"][number]
    judge: Judge = _work["judge"]
    if arm.teacher is None:
        return arm.pairs(judge.task)
    kept = _work["cache"] / "pairs" / f"{arm.digest()[:40]}-{_digest_of_task(judge.task)}"
    try:
        pairs = load_file(kept)
        return pairs["lq"], pairs["hq"]
    except (OSError, SafetensorError, KeyError):
        lq, hq = arm.pairs(judge.task)
        write_durably(kept, save({"lq": lq.contiguous(), "hq": hq.contiguous()}))
        return lq, hq


def _untouched(lq: Tensor) -> Tensor:
    return lq


def _name(arm: Arm, judge: Judge, seed: int, judged_on: str) -> str:
    """The cache's file of one training."""
    trained = arm.hq is not None
    about = {
        "arm": arm.digest(),
        "task": judge.task.model_dump(mode="json"),
        "network": judge.network.model_dump(mode="json") if trained else None,
        "steps": judge.steps if trained else 0,
        "seed": seed,
        "recipe": RECIPE,
        "judged_on": judged_on,
        "device": torch.device(judge.device).type,
    }
    return f"{hashlib.sha256(canonical_json(about)).hexdigest()[:40]}.json"


def _digest_of_task(task: Task) -> str:
    return hashlib.sha256(canonical_json(task.model_dump(mode="json"))).hexdigest()[:16]


def _digest_of(patients: Sequence[Images]) -> str:
    content = hashlib.sha256()
    for slices in patients:
        content.update(str(slices.shape).encode())
        content.update(np.ascontiguousarray(slices, "<f4").tobytes())
    return content.hexdigest()


def _read(path: Path) -> Judged | None:
    """A finished training; None where there is none, or it is damaged and has to be done again."""
    try:
        entry = json.loads(path.read_bytes())
        scored = Score(
            psnr_db=[float(one) for one in entry["psnr_db"]],
            ssim=[float(one) for one in entry["ssim"]],
        )
        return Judged(scored, float(entry["seconds"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
