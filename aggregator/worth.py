"""What a release was measured to be worth, as a card shows it: rows, figures, intervals, the gate.

The utility table itself is made by :mod:`aggregator.utility`; here is what of it is published, in
words for a reader who doubts. What is not named here stays where it is: times would make two equal
runs differ, and a patient's own figure is no one else's business.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

ROW_TITLES = {
    "input": "the degraded input, untouched",
    "prior": "prior only, without texture where it is a phantom (no hospital data)",
    "prior_warped": "prior under random warps and tone curves (no hospital data)",
    "prior_textured": "textured phantoms (no hospital data)",
    "public_direct": "public images as they are (no hospital data)",
    "public_and_textured": "public images and textured phantoms (no hospital data)",
    "public_anchored": "prior and public images, with targets of a network trained on them alone "
    "(no hospital data)",
    "noise_targets": "prior matched to random vectors in place of gradients (no hospital data)",
    "distilled": "**distilled: this release**",
    "anchor": "no training set: the sites' own network, which gave the targets",
    "real_same_bytes": "real slices, as many as the release has (never published)",
    "full": "all of the hospitals' training images",
}

_FROZEN = ConfigDict(frozen=True, allow_inf_nan=False)

Interval = tuple[float | None, float | None]
"""Ends of a 95% interval; None where the patients do not bound it."""


class Spread(BaseModel):
    """A figure over runs."""

    model_config = _FROZEN
    mean: float
    std: float
    n: int = Field(ge=1, description="trainings, over distillations and judges")


class Row(BaseModel):
    """One training set's worth: patient-mean PSNR in dB and SSIM of a network trained on it."""

    model_config = _FROZEN
    psnr: Spread
    ssim: Spread
    measured_at: Literal["hospitals"] | None = Field(
        None,
        # A table that was measured elsewhere reads as it did before there was a choice.
        exclude_if=lambda value: value is None,
        description="on patients of the hospitals, at the hospitals; else by the publisher",
    )


class Gate(BaseModel):
    """Whether the release passed the gate before publishing, and why."""

    model_config = _FROZEN
    passed: bool
    reason: str


class Utility(BaseModel):
    """What a release was measured to be worth; fields that are not named here are not published."""

    model_config = _FROZEN
    rows: dict[str, Row]
    best_null: str | None = Field(None, description="row of the best control")
    gain_over_best_null: float | None = Field(None, description="dB")
    gain_interval: Interval | None = None
    worth_of_hospital_data: float | None = Field(None, description="dB, full over best control")
    worth_interval: Interval | None = None
    share_recovered: float | None = None
    share_recovered_interval: Interval | None = None
    gap_closed: float | None = None
    distance_to_full: float | None = Field(None, description="dB")
    distance_to_full_interval: Interval | None = None
    above_real_same_bytes: float | None = Field(None, description="dB")
    above_real_same_bytes_interval: Interval | None = None
    releases: int | None = Field(None, description="gradient vectors of a site, at most")
    requests: int | None = Field(None, description="Flower rounds")
    bytes_published: int | None = None
    bytes_raw: int | None = Field(None, description="of the hospitals' training images")
    gate: Gate | None = None
    evaluation: str | None = Field(None, description="on whom and how it was measured")


def worth(utility: Utility | None) -> str:
    """The Markdown of what a release is worth."""
    if utility is None:
        return "Not measured for this release: no utility is claimed."
    lines = ["| row | trained on | PSNR, dB | SSIM | trainings |", "|---|---|---|---|---|"]
    for name, row in sorted(utility.rows.items(), key=lambda item: _place(item[0])):
        lines.append(
            f"| `{plain(name)}` | {ROW_TITLES.get(name, 'not described')}"
            f"{', measured at the hospitals' if row.measured_at else ''} "
            f"| {row.psnr.mean:.2f} ± {row.psnr.std:.2f} "
            f"| {row.ssim.mean:.4f} ± {row.ssim.std:.4f} | {row.psnr.n} |"
        )
    lines += ["", "Mean over held-out patients, ± standard deviation over trainings."]
    if utility.evaluation:
        lines.append(plain(utility.evaluation))
    if figures := _figures(utility):
        lines += ["", "| figure | value | 95% of patients | is |", "|---|---|---|---|"]
        lines += [
            f"| `{name}` | {value} | {ends} | {text} |" for name, value, ends, text in figures
        ]
    if utility.gate is not None:
        verdict = "passed" if utility.gate.passed else "**not passed**"
        lines += ["", f"Gate before publishing: {verdict}. {plain(utility.gate.reason)}"]
    if utility.gain_over_best_null is not None and utility.gain_over_best_null <= 0:
        lines += ["", "**It was worth no more than the best control without hospital data.**"]
    return "\n".join(lines)


def plain(text: object) -> str:
    """``text`` in one table cell."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def _figures(utility: Utility) -> list[tuple[str, str, str, str]]:
    """(name, value, interval, meaning) of every figure that is known."""
    best = f"the best control without hospital data (`{plain(utility.best_null or 'best')}`)"
    over_full = "(distilled − prior) / (full − prior)"
    differences = [
        ("gain_over_best_null", "gain_interval", f"dB of this release over {best}"),
        ("worth_of_hospital_data", "worth_interval", f"dB of `full` over {best}"),
        ("share_recovered", "share_recovered_interval", "the first of these over the second"),
        ("gap_closed", None, over_full),
        ("distance_to_full", "distance_to_full_interval", "dB of `full` over this release"),
        (
            "above_real_same_bytes",
            "above_real_same_bytes_interval",
            "dB of this release over `real_same_bytes`",
        ),
    ]
    counts = [
        ("releases", "gradient vectors of the site that released most"),
        ("requests", "Flower rounds they came in"),
        ("bytes_published", "bytes of the pairs"),
        ("bytes_raw", "bytes of the hospitals' training images at the same size"),
    ]
    rows = []
    for name, interval, text in differences:
        value = getattr(utility, name)
        ends = getattr(utility, interval) if interval else None
        if value is not None:
            rows.append((name, f"{value:.2f}", _between(ends), text))
    for name, text in counts:
        count = getattr(utility, name)
        if count is not None:
            rows.append((name, f"{count:,}", "", text))
    return rows


def _between(ends: Interval | None) -> str:
    if ends is None:
        return ""
    low, high = ("unbounded" if end is None else f"{end:.2f}" for end in ends)
    return f"{low} to {high}"


def _place(name: str) -> tuple[int, str]:
    order = list(ROW_TITLES)
    return (order.index(name) if name in order else len(order), name)
