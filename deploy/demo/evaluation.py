"""What the pairs are worth: trains on them and on what they are compared with, before publishing.

A program of its own (``python -m deploy.demo.evaluation``), so that the demo itself stays small.
Leaves the table in the run's folder, where the gate before publishing reads it.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from aggregator.arms import Distillation
from aggregator.distill.prior import build_prior
from aggregator.judges import Judge, utility_rows
from aggregator.utility import UTILITY
from deploy.demo.narration import clock
from shared.contract import RunContract
from shared.durable import write_durably
from site_agent.intake.folder import evaluation_images

ROWS = (
    *("input", "prior", "prior_textured", "public_direct", "public_and_textured"),
    *("distilled", "full"),
)
"""What a few minutes are enough for; `aggregator simulate` judges every control."""


def main() -> None:
    """Reads the folders, prints progress a line at a time, writes the table into the run."""
    parser = argparse.ArgumentParser(prog="deploy.demo.evaluation", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the finished run")
    parser.add_argument("--train", type=Path, required=True, help="the hospitals' images")
    parser.add_argument("--holdout", type=Path, required=True, help="patients kept back")
    parser.add_argument("--public", type=Path, help="public volumes, where the prior is public")
    parser.add_argument("--steps", type=int, required=True, help="training steps of each network")
    parser.add_argument("--seeds", type=int, required=True, help="trainings of each row")
    parser.add_argument("--workers", type=int, required=True, help="processes to train in")
    given = parser.parse_args()
    contract = RunContract.model_validate_json((given.run / "contract.json").read_bytes())
    task = contract.task
    train, holdout, public = (
        folder
        and evaluation_images(
            folder,
            size_px=task.size_px,
            low=task.window[0],
            high=task.window[1],
            modality=task.modality,
        )
        for folder in (given.train, given.holdout, given.public)
    )
    shown = torch.from_numpy(np.concatenate(public)) if public else None
    pairs = load_file(given.run / "pairs.safetensors")
    table = utility_rows(
        contract=contract,
        distillations=[Distillation(contract, pairs["lq"], pairs["hq"])],
        prior=build_prior(contract, public=shown),
        train=train,
        holdout=holdout,
        public=public,
        judge=Judge(
            task=task,
            network=contract.student,
            steps=given.steps,
            seeds=given.seeds,
            workers=given.workers,
        ),
        cache=given.run / "judged",
        rows=ROWS,
        every_variant=False,
        on_progress=_tell,
    )
    table["contract_digest"] = contract.digest()
    table["evaluation"] = (
        f"{len(holdout)} patients who took no part; networks trained for {given.steps} steps, "
        "which is short of convergence; one distillation; some controls only."
    )
    write_durably(given.run / UTILITY, json.dumps(table, indent=2).encode())


def _tell(done: int, total: int, eta_s: float | None) -> None:
    left = "" if eta_s is None else f", about {clock(eta_s)} left"
    print(f"trained {done}/{total}{left}", flush=True)


if __name__ == "__main__":
    main()
