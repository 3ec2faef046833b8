"""Curves of utility against what was released, how many images there are, and their bytes.

``python tests/benchmarks/figure.py OUT.png TABLES.json...`` draws what `aggregator simulate --json`
or ``utility.py --json`` wrote: a point a table, a line a task, with the best null and full data
beside it. Error bars are the standard deviation over runs.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

AXES = (
    ("releases", "gradient vectors a site released", "linear"),
    ("images", "distilled images", "log"),
    ("bytes_published", "KiB published", "log"),
)
DPI = 150


def value_of(table: dict[str, Any], axis: str) -> float:
    """Where a table stands on an axis; bytes in KiB."""
    if axis == "bytes_published":
        return float(table[axis]) / 1024
    return float(table["contract"]["images"] if axis == "images" else table[axis])


def series(tables: Sequence[dict[str, Any]], axis: str) -> dict[str, list[dict[str, Any]]]:
    """Tables by task, in the axis' order: those that differ in nothing but what moves along it.

    Along ``releases`` the number of images is the most frequent one, and the other way round.
    """
    held = "images" if axis == "releases" else "releases"
    by_task: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for table in tables:
        by_task[table["task"]].append(table)
    found = {}
    for task, of_task in by_task.items():
        values = [value_of(one, held) for one in of_task]
        usual = max(sorted(set(values)), key=values.count)
        judge = json.dumps(of_task[0]["judge"], sort_keys=True)
        kept = {
            value_of(one, axis): one
            for one in of_task
            if value_of(one, held) == usual and json.dumps(one["judge"], sort_keys=True) == judge
        }
        found[task] = [kept[value] for value in sorted(kept)]
    return found


def draw(tables: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes the three panels."""
    figure, panels = pyplot.subplots(1, len(AXES), figsize=(4.6 * len(AXES), 3.9), sharey=True)
    for panel, (axis, label, scale) in zip(panels, AXES, strict=True):
        for number, (task, along) in enumerate(series(tables, axis).items()):
            colour = f"C{number}"
            at = [value_of(one, axis) for one in along]
            distilled = [one["rows"]["distilled"]["psnr"] for one in along]
            panel.errorbar(
                at,
                [one["mean"] for one in distilled],
                yerr=[one["std"] for one in distilled],
                color=colour,
                marker="o",
                capsize=3,
                label=f"{task}: distilled",
            )
            nulls = [one["rows"][one["best_null"]]["psnr"]["mean"] for one in along]
            panel.plot(at, nulls, color=colour, linestyle=":", label=f"{task}: best null")
            full = [one["rows"]["full"]["psnr"]["mean"] for one in along]
            panel.plot(at, full, color=colour, linestyle="--", label=f"{task}: full data")
        panel.set_xscale(scale)
        values = sorted({value_of(one, axis) for one in tables})
        panel.set_xticks(values, [f"{value:g}" for value in values], minor=False)
        panel.set_xticks([], minor=True)
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("PSNR on held-out patients, dB")
    panels[-1].legend(fontsize=7)
    if not all(one["converged"] for one in tables):
        figure.suptitle("not converged", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def main() -> None:
    """Reads the tables and draws them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("tables", type=Path, nargs="+")
    given = parser.parse_args()
    read = [json.loads(path.read_bytes()) for path in given.tables]
    draw([table for one in read for table in one.get("tables", [one])], given.out)


if __name__ == "__main__":
    main()
