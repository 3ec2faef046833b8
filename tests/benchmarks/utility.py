"""The utility benchmark over tasks and networks, beside the bars it has to clear.

``python tests/benchmarks/utility.py --data ../shared/data --tasks ct-denoise mr-sr --json f``

Each pair of a task and a judge network is an `aggregator simulate`, with its rows and figures; what
is distilled and trained once is used for all of them, and kept in ``--run`` to go on from. With
``--vary images=1,2,4,8,16`` the task is distilled again for each value, for the curves of
``--figure``.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from figure import draw

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
from aggregator.utility import ROWS
from shared.architectures import read_network
from shared.contract import RunContract

STUDENT = "student"
MR_SEQUENCE = "FLAIR"


def main() -> int:
    """Runs what the command line names; prints one table; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with ct and mr")
    parser.add_argument("--tasks", nargs="+", default=["ct-denoise"], metavar="TASK")
    parser.add_argument(
        "--networks", nargs="+", default=[STUDENT], help="judges: student, or kind:key=value"
    )
    parser.add_argument(
        "--contract",
        nargs="+",
        default=[],
        metavar="TASK=FILE",
        help="contract of a task in TOML; ct-kernel needs one",
    )
    parser.add_argument("--vary", nargs="+", default=[], metavar="FIELD=V,V", help="of a contract")
    parser.add_argument("--prior", default="phantom", choices=("phantom", "public", "both"))
    parser.add_argument("--images", type=int)
    parser.add_argument("--split", default="choosing", choices=("choosing", "reporting"))
    parser.add_argument("--distillations", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument(
        "--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW", help="rows to judge"
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--run", type=Path, help="folder to go on from")
    parser.add_argument("--json", type=Path, help="write every table there")
    parser.add_argument("--figure", type=Path, help="draw the curves there, PNG")
    given = parser.parse_args()
    place = given.run or Path(tempfile.mkdtemp(prefix="utility-"))
    tables = []
    for contract, sources, network, label in benchmarks(given):
        print(f"\n{label}", file=sys.stderr)
        judge = Judge(
            task=contract.task,
            network=contract.student if network == STUDENT else read_network(network),
            steps=given.steps or (QUICK_STEPS if given.quick else CONVERGED_STEPS),
            seeds=given.seeds or (2 if given.quick else 3),
            workers=given.workers,
            device="cuda" if torch.cuda.is_available() else "cpu",
        )
        table = simulate(
            contract,
            sources,
            judge=judge,
            distillations=given.distillations or (1 if given.quick else 3),
            place=place,
            rows=given.rows,
        )
        tables.append({"label": label, "network_named": network, **table})
        print(f"\n{label}\n{text_of(table)}")
        if given.json:
            given.json.write_text(json.dumps({"tables": tables}, indent=2), encoding="utf-8")
    print(f"\n{overview(tables)}")
    if given.figure:
        draw(tables, given.figure)
        print(f"figure {given.figure}")
    return 0


def benchmarks(given: argparse.Namespace) -> Iterator[tuple[RunContract, Sources, str, str]]:
    """(contract, images, judge, label) of every table wanted."""
    files = dict(one.split("=", 1) for one in given.contract)
    for task in given.tasks:
        contract = settled(
            Path(files[task]) if task in files else None,
            task=task,
            prior=given.prior,
            images=given.images,
            quick=given.quick,
        )
        is_mr = contract.task.modality == "MR"
        data = given.data / ("mr" if is_mr else "ct")
        sources = Sources(
            data,
            public=data / PRIOR_FOLDER,  # nulls have it even where the distilled images do not
            split=given.split,
            sequence=MR_SEQUENCE if is_mr else None,
        )
        for network in given.networks:
            yield contract, sources, network, f"{task}, {network}"
        for field, values in (one.split("=", 1) for one in given.vary):
            for value in values.split(","):
                varied = with_field(contract, field, json.loads(value))
                yield varied, sources, STUDENT, f"{task}, {field} = {value}"


def with_field(contract: RunContract, field: str, value: Any) -> RunContract:
    """``contract`` with one field, dotted, of another value; checked like any contract."""
    document = contract.model_dump(mode="json")
    *path, last = field.split(".")
    place = document
    for name in path:
        place = place[name]
    place[last] = value
    return RunContract.model_validate(document)


Bar = tuple[str, str, Callable[[dict[str, Any]], bool]]


def bars(table: dict[str, Any]) -> list[Bar]:
    """The bars for a table: figure, bar in words, whether it is cleared."""
    contract = RunContract.model_validate(table["contract"])
    own = table["network_named"] == STUDENT
    asked = 0.85 if contract.task.modality == "MR" else 0.65
    asked = asked if own else 0.5
    found: list[Bar] = [
        (
            "share_recovered",
            f">= {asked:.0%}",
            lambda one: one["share_recovered"] is not None and one["share_recovered"] >= asked,
        )
    ]
    if not own:
        return found
    if contract.task.name == "ct-denoise" and contract.task.size_px == 128:
        found.append(
            (
                "gain_over_best_null",
                ">= 0.3, above 0",
                lambda one: (
                    one["gain_over_best_null"] >= 0.3 and (one["gain_interval"][0] or 0) > 0
                ),
            )
        )
    return [
        *found,
        ("distance_to_full", "<= 0.2", lambda one: one["distance_to_full"] <= 0.2),
        ("above_real_same_bytes", "> 0", lambda one: one["above_real_same_bytes"] > 0),
        ("releases", "<= 32", lambda one: one["releases"] <= 32),
        ("requests", "<= 8", lambda one: one["requests"] <= 8),
    ]


def overview(tables: list[dict[str, Any]]) -> str:
    """One line a figure and its bar."""
    lines = [f"{'benchmark':<36} {'figure':<22} {'value':>9}  {'95% of patients':<18} bar"]
    for table in tables:
        for name, bar, cleared in bars(table):
            value, ends = table[name], table.get(interval_of(name))
            between = "–" if not ends else " to ".join(shown(name, end) for end in ends)
            unmeasured = value is None and name != "share_recovered"  # its row was not asked for
            verdict = "not measured" if unmeasured else "MISSED"
            if not unmeasured and cleared(table):
                verdict = "cleared"
            lines.append(
                f"{table['label']:<36} {name:<22} {shown(name, value):>9}  {between:<18} "
                f"{bar}: {verdict}"
            )
    if not all(table["converged"] for table in tables):
        lines.append(f"NOT CONVERGED: fewer than {CONVERGED_STEPS} steps a judge")
    return "\n".join(lines)


def interval_of(name: str) -> str:
    """The key of a figure's interval."""
    return "gain_interval" if name == "gain_over_best_null" else f"{name}_interval"


def shown(name: str, value: float | None) -> str:
    """A figure for people."""
    if value is None:
        return "–"
    if name == "share_recovered":
        return f"{value:.0%}"
    return f"{value:d}" if isinstance(value, int) else f"{value:+.2f}"


if __name__ == "__main__":
    sys.exit(main())
