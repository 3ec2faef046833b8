"""What a matching step costs through a sketch, as a ratio to a step on whole gradients.

``python tests/benchmarks/sketch.py [--sizes 128 512 2048] [--steps 60] [--json out.json]``

One core, the default contract with the textured phantoms as prior; targets are the gradients of
other phantoms, so no hospital is needed. Each contract distils one request of three probes; counted
is the processor's time of the optimisation steps alone, the best of three.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from aggregator.distill.distiller import Distiller
from aggregator.distill.prior import build_prior
from shared.contract import Privacy, Probes, RunContract
from shared.gradients import cohort_gradients

REPEATS = 3


def main() -> int:
    """Measures and prints; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    report = measure(RunContract(name="sketch"), sizes=given.sizes, steps=given.steps)
    print(json.dumps(report, indent=2))
    if given.json:
        given.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    return 0


def measure(contract: RunContract, *, sizes: list[int], steps: int) -> dict[str, Any]:
    """Milliseconds of a step for whole gradients and each size, and the ratios."""
    anchor = contract.anchor.model_copy(update={"rounds": 0, "public_steps": 0})
    probes = Probes(requests=1, depths=contract.probes.depths, steps=steps, clip_norm=1e6)
    contract = contract.model_copy(update={"anchor": anchor, "probes": probes})
    spent = {
        size: step_ms(contract.model_copy(update={"privacy": Privacy(sketch=size)}))
        for size in (0, *sizes)
    }
    return {
        "steps": steps,
        "whole_ms": round(spent[0], 2),
        "sketched_ms": {size: round(spent[size], 2) for size in sizes},
        "sketched_over_whole": {size: round(spent[size] / spent[0], 3) for size in sizes},
    }


def step_ms(contract: RunContract) -> float:
    """The processor's milliseconds of one optimisation step."""
    prior = build_prior(contract, public=None)
    best = float("inf")
    for _ in range(REPEATS):
        distiller = Distiller(contract, prior, device=torch.device("cpu"))
        distiller.prepare()
        ask, weights = distiller.ask()
        gradients = cohort_gradients(
            contract=contract,
            network=ask.network,
            weights=weights,
            patients=[prior.free[-4:]],
            seed=1,
            device=torch.device("cpu"),
        )
        targets = distiller.sketched(gradients)
        began = time.process_time()
        distiller.absorb([targets], patients=[5])
        best = min(best, time.process_time() - began)
    return 1e3 * best / contract.probes.steps


if __name__ == "__main__":
    sys.exit(main())
