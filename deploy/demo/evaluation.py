"""What the release is worth: trains on it and on what it is compared with, on patients kept back.

A program of its own (``python -m deploy.demo.evaluation``), so that the demo itself stays small.
"""

import argparse
import json
from pathlib import Path

from aggregator.utility import utility_rows
from deploy.demo.narration import clock
from shared.contract import RunContract
from site_agent.intake import evaluation_images


def main() -> None:
    """Reads the folders, prints progress a line at a time, writes the figures as JSON."""
    parser = argparse.ArgumentParser(prog="deploy.demo.evaluation", description=__doc__)
    parser.add_argument("release", type=Path, help="folder of the downloaded release")
    parser.add_argument("contract", type=Path, help="contract.json of the run")
    parser.add_argument("--train", type=Path, required=True, help="the hospitals' images")
    parser.add_argument("--holdout", type=Path, required=True, help="patients kept back")
    parser.add_argument("--public", type=Path, help="public volumes, where the prior is public")
    parser.add_argument("--steps", type=int, required=True, help="training steps of each network")
    parser.add_argument("--seeds", type=int, required=True, help="trainings of each row")
    parser.add_argument("--workers", type=int, required=True, help="processes to train in")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    given = parser.parse_args()
    contract = RunContract.model_validate_json(given.contract.read_bytes())
    task = contract.task
    images = [
        folder
        and evaluation_images(
            folder,
            size_px=task.size_px,
            low=task.window[0],
            high=task.window[1],
            modality=task.modality,
        )
        for folder in (given.train, given.holdout, given.public)
    ]
    figures = utility_rows(
        contract=contract,
        pairs=given.release / "pairs.safetensors",
        train=images[0],
        holdout=images[1],
        public=images[2],
        steps=given.steps,
        seeds=given.seeds,
        workers=given.workers,
        on_progress=_tell,
    )
    given.out.write_text(json.dumps(figures, indent=2), encoding="utf-8")


def _tell(done: int, total: int, eta_s: float | None) -> None:
    left = "" if eta_s is None else f", about {clock(eta_s)} left"
    print(f"trained {done}/{total}{left}", flush=True)


if __name__ == "__main__":
    main()
