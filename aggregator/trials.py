"""Distillations of a benchmark: a folder each, side by side in processes of their own.

Beside what every run leaves, a trial's folder holds the images of the same matching towards random
vectors: a null that the distilled pairs are judged against.
"""

import json
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from aggregator.arms import Distillation, Teacher
from aggregator.distill.controls import noise_targets
from aggregator.distill.distiller import Distiller
from aggregator.evaluation import judge_run
from aggregator.federation import CHECKPOINT, EVENTS, PAIRS, federate
from aggregator.foundation import founded, read_prior
from aggregator.runs import FOUNDATION
from aggregator.simulate import Hospital, in_process, members_of
from shared.contract import RunContract
from shared.durable import write_durably
from shared.processes import die_with_parent

NULLS = "nulls.safetensors"
POLL_S = 1.0


@dataclass(frozen=True)
class Trial:
    """One distillation: its contract, its sites, its folder, and the public images if any."""

    contract: RunContract
    hospitals: tuple[Hospital, ...]
    run: Path
    public: Path | None


def distil_all(
    trials: Sequence[Trial], *, workers: int, on_round: Callable[[int, int], None]
) -> None:
    """Works on the trials until all are finished; those that are, are left as they are.

    ``on_round`` is called with the rounds done and in all. Raises ``FederationError`` or
    ``FoundationError``.
    """
    todo = [trial for trial in trials if not (trial.run / NULLS).exists()]
    if not todo:
        return
    side_by_side = max(1, min(workers, len(todo)))
    threads = 1 if side_by_side > 1 else max(1, workers)
    rounds = sum(trial.contract.rounds for trial in trials)
    with ProcessPoolExecutor(
        side_by_side,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(threads,),
    ) as pool:
        try:
            pending = {pool.submit(distil, trial) for trial in todo}
            while pending:
                finished, pending = wait(pending, timeout=POLL_S)
                for future in finished:
                    future.result()
                on_round(sum(map(_rounds_done, trials)), rounds)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _start(threads: int) -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    torch.set_num_threads(threads)


def distil(trial: Trial) -> None:
    """Runs the federation of one trial, then its nulls.

    Raises ``FederationError``, ``FoundationError`` or ``HospitalError``.
    """
    contract = _founded(trial)
    modality = contract.task.modality
    ask = in_process(trial.hospitals, modality=modality, outboxes=trial.run / "outbox")
    federate(
        contract=contract,
        sites=[one.name for one in trial.hospitals],
        exchange=ask,
        run=trial.run,
        public=trial.public,
    )
    judge_run(
        contract=contract,
        sites=[one.name for one in trial.hospitals],
        exchange=ask,
        run=trial.run,
        public=trial.public,
    )
    if not (trial.run / NULLS).exists():
        write_durably(trial.run / NULLS, save({"noise": _noise_matched(trial).contiguous()}))


def read_trial(trial: Trial) -> Distillation:
    """What a finished trial leaves to be judged."""
    plan = trial.contract.anchor
    pairs, state = load_file(trial.run / PAIRS), load_file(trial.run / CHECKPOINT)

    def teacher(weights: Tensor) -> Teacher:
        return Teacher(trial.contract.anchor_network, weights, plan.symmetric)

    return Distillation(
        contract=_founded(trial),
        lq=pairs["lq"],
        hq=pairs["hq"],
        anchor=teacher(state["anchor"]) if plan.rounds else None,
        public=teacher(state["public"]),
        noise=load_file(trial.run / NULLS)["noise"],
    )


def _founded(trial: Trial) -> RunContract:
    """The trial's contract as sites see it; what it stands on is in the trial's folder."""
    contract = trial.contract
    if contract.granularity == "federation":
        contract = contract.model_copy(update={"members": members_of(trial.hospitals)})
    return founded(
        contract,
        public=trial.public,
        file=trial.run / FOUNDATION,
        on_step=lambda *_: None,
    )


def _noise_matched(trial: Trial) -> Tensor:
    contract = _founded(trial)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    distiller = Distiller(contract, read_prior(contract, trial.public), device=device)
    # The same network as the run's, which need not be trained a second time.
    free = load_file(trial.run / CHECKPOINT)["public"].to(device)
    distiller.public_weights = distiller.anchor_weights = free
    return noise_targets(distiller).images.cpu()


def _rounds_done(trial: Trial) -> int:
    """Whole rounds of a trial so far, from its journal."""
    if (trial.run / NULLS).exists():
        return trial.contract.rounds
    try:
        last = (trial.run / EVENTS).read_text("utf-8").splitlines()[-1]
        return max(0, int(json.loads(last)["round"]) - 1)
    except (OSError, IndexError, ValueError, KeyError):
        return 0
