"""The end of the demo: a table for people and ``report.json`` for machines."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROWS = {
    "input": "the noisy images, untouched",
    "prior": "the prior as it is",
    "prior_textured": "textured phantoms",
    "public_direct": "the public volumes as they are",
    "public_and_textured": "the public volumes and textured phantoms",
    "distilled": "distilled: the release",
    "full": "all of the hospitals' images",
}
"""Row of the figures, and what a network of it was trained on."""
FIGURES = (
    *("best_null", "gap_closed", "gain_over_best_null", "gain_interval"),
    *("share_recovered", "share_recovered_interval", "worth_of_hospital_data"),
)


def build_report(
    *,
    figures: Mapping[str, Any],
    result: Mapping[str, Any],
    release: Mapping[str, Any] | None,
    seconds: Mapping[str, float],
    peak_mib: Mapping[str, float],
    simulated: bool,
) -> dict[str, Any]:
    """What ``report.json`` holds. ``result`` is the run's ``result.json``.

    ``release`` is None where the gate refused it.
    """
    return {
        "simulated": simulated,
        "rows": {
            name: {part: row[part] for part in ("psnr", "ssim")}
            for name, row in figures["rows"].items()
        },
        **{name: figures.get(name) for name in FIGURES},
        "rounds": result["rounds"],
        "sites": result["sites"],
        "seconds": {
            **seconds,
            **{f"run.{phase}": value for phase, value in result["seconds"].items()},
        },
        "peak_rss_mib": dict(sorted(peak_mib.items())),
        "release": release
        and {name: release[name] for name in ("name", "version", "digest", "url")},
        "verified": release is not None,
    }


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Writes the report whole or not at all."""
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


def print_report(console: Console, report: Mapping[str, Any], *, patients: str) -> None:
    """The table, what it comes to, and what it took."""
    console.print(f"Low-dose CT denoising, judged on {patients}:", highlight=False)
    table = Table()
    table.add_column("network trained on")
    table.add_column("PSNR, dB", justify="right")
    table.add_column("SSIM", justify="right")
    for row, title in ROWS.items():
        if row in report["rows"]:
            figures = report["rows"][row]
            table.add_row(
                title,
                _spread(figures["psnr"], digits=2),
                _spread(figures["ssim"], digits=4),
                style="bold" if row == "distilled" else None,
            )
    console.print(table)
    console.print("mean over patients ± standard deviation over seeds", style="dim")
    for name, text in (
        ("gap_closed", "of the way from the prior to full data"),
        ("share_recovered", "of the way from the best control without hospital data to full data"),
    ):
        if report.get(name) is not None:
            console.print(f"{name:<20}{report[name]:>8.0%}  {text}", highlight=False)
    if report.get("gain_over_best_null") is not None:
        gain = report["gain_over_best_null"]
        text = "over the best control without hospital data"
        console.print(f"{'gain_over_best_null':<20}{gain:>+5.2f} dB  {text}", highlight=False)
    for site, traffic in report["sites"].items():
        up, down = (traffic[name] / 2**20 for name in ("bytes_up", "bytes_down"))
        text = f"{site}: {traffic['releases']} mean gradients left it, {up:.1f} MiB"
        text += f"; {down:.1f} MiB of requests came"
        console.print(text, highlight=False)
    peak = report["peak_rss_mib"].get("total")
    if peak:
        console.print(f"memory at the peak, all processes: {peak / 1024:.1f} GiB", highlight=False)


def _spread(figure: Mapping[str, Any], *, digits: int) -> str:
    if figure.get("n", 1) < 2:
        return f"{figure['mean']:.{digits}f}" + " " * (digits + 5)
    return f"{figure['mean']:.{digits}f} ± {figure['std']:.{digits}f}"
