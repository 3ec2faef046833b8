"""Utility against privacy: what each way of summarising costs, beside the same nulls and full data.

``python tests/benchmarks/privacy.py --data ../shared/data/ct --split reporting --json f``

Each variant is a contract of its own, distilled over the same simulated hospitals and judged with
the same students and patients: clear gradients, sketches of three sizes, a clear anchor in public
directions, and that anchor with patient-level DP at three epsilons. ``x10`` stands for hospitals
with ten times the patients: sums and their public divisor grow tenfold and the noise does not,
which is the same as a tenth of the noise multiplier with the patients that are there. The epsilon
named is then that of the larger cohort. ``of clear`` is a variant's gain over the clear one's.

A secure sum gives the pairs of the mean, but for its fixed point and for answers that the mean
shortens to the median length, so `federation` has no row of its own without noise. With it,
`distributed` adds the noise once, and its epsilon holds while all hospitals add their share
(`privacy.honest` 1); `local` adds it at every hospital, whose patients need to trust no other.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from aggregator.benchmark import (
    CONVERGED_STEPS,
    PRIOR_FOLDER,
    QUICK_STEPS,
    Sources,
    simulate,
    text_of,
)
from aggregator.benchmark_contract import settled
from aggregator.judges import Judge
from shared.accounting import Spent, epsilon_of
from shared.contract import RunContract

SKETCHES = (128, 512, 2048)
EPSILONS = (8.0, 3.0, 1.0)
LARGER = 10
ROWS = ("input", "prior", "prior_textured", "public_anchored", "distilled", "anchor", "full")
PRIVATE: dict[str, Any] = {
    "anchor": {"rounds": 1, "descent": "patient", "local_steps": 120, "clip_norm": 0.6},
    "probes": {"requests": 0},
}
"""Levers of a contract whose noise is worth having: one release, and no probe.

Chosen on split ``choosing``, where a patient's descent within the directions is 0.62 long."""
DIRECTIONS = 64
LARGER_DIRECTIONS = 128
"""Of ten times the patients: less noise leaves room for more."""
FIGURES = ("gain_over_best_null", "share_recovered", "distance_to_full")


def main() -> int:
    """Runs what the command line names; prints one table; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with hospital-*")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="these alone")
    parser.add_argument("--split", default="choosing", choices=("choosing", "reporting"))
    parser.add_argument("--distillations", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--steps", type=int, help="training steps of each judge")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--run", type=Path, help="folder to go on from")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    every = variants(given.quick)
    unknown = sorted(set(given.variants or ()) - set(every))
    if unknown:
        parser.error(f"no variant {', '.join(unknown)}; there are {', '.join(every)}")
    place = given.run or Path(tempfile.mkdtemp(prefix="privacy-"))
    tables: dict[str, dict[str, Any]] = {}
    for name in given.variants or every:
        contract = every[name]
        print(f"\n{name}", file=sys.stderr)
        tables[name] = simulate(
            contract,
            Sources(given.data, public=given.data / PRIOR_FOLDER, split=given.split),
            judge=Judge(
                task=contract.task,
                network=contract.student,
                steps=given.steps or (QUICK_STEPS if given.quick else CONVERGED_STEPS),
                seeds=given.seeds or (2 if given.quick else 3),
                workers=given.workers,
                device="cuda" if torch.cuda.is_available() else "cpu",
            ),
            distillations=given.distillations or (1 if given.quick else 3),
            place=place,
            rows=ROWS,
        )
        print(f"\n{name}\n{text_of(tables[name])}")
        if given.json:
            given.json.write_text(json.dumps(tables, indent=2), encoding="utf-8")
    print(f"\n{overview(tables)}")
    return 0


def variants(quick: bool) -> dict[str, RunContract]:
    """The contracts by name."""
    clear = settled(None, task=None, prior=None, images=None, quick=quick)
    found = {"clear": clear}
    for size in SKETCHES:
        found[f"sketch-{size}"] = with_fields(clear, privacy={"sketch": size})
    private = with_fields(clear, **PRIVATE)
    found["patient-wise"] = private
    found["directions"] = with_fields(private, privacy={"directions": DIRECTIONS})
    for epsilon in EPSILONS:
        noised = {"epsilon": epsilon, "noise": "distributed", "honest": 1.0}
        whole = with_fields(private, granularity="federation", privacy=noised)
        reduced = with_fields(whole, privacy={"directions": DIRECTIONS})
        local = with_fields(reduced, granularity="cohort", privacy={"noise": "local"})
        found[f"directions-epsilon-{epsilon:g}"] = reduced
        found[f"directions-epsilon-{epsilon:g}-local"] = local
        finer = with_fields(reduced, privacy={"directions": LARGER_DIRECTIONS})
        found[f"directions-epsilon-{epsilon:g}-x{LARGER}"] = of_larger_hospitals(finer)
        found[f"whole-epsilon-{epsilon:g}"] = whole
        found[f"whole-epsilon-{epsilon:g}-x{LARGER}"] = of_larger_hospitals(whole)
    return found


def with_fields(contract: RunContract, **fields: Any) -> RunContract:
    """``contract`` with fields of its own tables replaced; checked like any contract."""
    document = contract.model_dump(mode="json", exclude_unset=False)
    for name, value in fields.items():
        old = document[name]
        document[name] = {**old, **value} if isinstance(old, dict) else value
    return RunContract.model_validate(document)


def of_larger_hospitals(contract: RunContract) -> RunContract:
    """The contract whose noise, over the patients there are, is that of ten times as many."""
    multiplier, private = contract.noise_multiplier, contract.privacy
    assert multiplier is not None
    spent = Spent(
        noise_multiplier=multiplier / LARGER, sampling=private.sampling, releases=contract.rounds
    )
    return with_fields(contract, privacy={"epsilon": epsilon_of([spent], delta=private.delta)})


def overview(tables: dict[str, dict[str, Any]]) -> str:
    """One line a variant; the last column is the share of the clear variant's gain."""
    clear = tables.get("clear", {}).get("gain_over_best_null")
    lines = [
        f"{'variant':<30}{'anchor gain':>12}{'pairs':>8}{'± std':>7}{'null':>8}{'full':>8}"
        f"{'gain':>8}  {'95% of patients':<18}{'share':>7}{'of clear':>9}"
    ]
    for name, table in tables.items():
        rows = {row: table["rows"][row]["psnr"] for row in table["rows"]}
        gain, ends = table["gain_over_best_null"], table["gain_interval"]
        share, learned = table["share_recovered"], table["anchor_gain"]
        lines.append(
            f"{name:<30}{'–' if learned is None else f'{learned:+.2f}':>12}"
            f"{rows['distilled']['mean']:8.2f}"
            f"{rows['distilled']['std']:7.2f}{rows[table['best_null']]['mean']:8.2f}"
            f"{rows['full']['mean']:8.2f}{gain:+8.2f}  {ends[0]:+.2f} to {ends[1]:+.2f}    "
            f"{'–' if share is None else f'{share:.0%}':>7}"
            f"{'–' if not clear else f'{gain / clear:.0%}':>9}"
        )
    if not all(table["converged"] for table in tables.values()):
        lines.append(f"NOT CONVERGED: fewer than {CONVERGED_STEPS} steps a judge")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
