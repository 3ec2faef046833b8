"""What a release is worth: figures made of the utility table, and the gate before publishing.

A table has a row a training set; ``aggregator.arms`` says what each row is trained on. A row holds
the mean and spread over runs (judges, times distillations where the row depends on one) of the
patient means, and the patients' own means, in the holdout's order and without a name.

Everything is in dB of PSNR. Intervals are of the patients: 95% percentile bootstrap (Efron and
Tibshirani 1993, chapter 13), paired, since every row is judged on the same degraded images. They
say nothing about another draw of seeds; a row's ``std`` does.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.release.errors import ReleaseError

FloatArray = NDArray[np.float64]

ROWS = (
    *("input", "prior", "prior_warped", "prior_textured", "public_direct"),
    *("public_and_textured", "public_anchored", "noise_targets"),
    *("distilled", "anchor", "real_same_bytes", "full"),
)
HOSPITAL_ROWS = ("distilled", "anchor", "real_same_bytes", "full")
"""Rows that needed a hospital's images; every other one is a null: a set that needed none."""
UTILITY = "utility.json"
"""Where a run's folder holds its table."""
RESAMPLES = 10_000
BOOTSTRAP_SEED = 2_511_13106
CONFIDENCE = 0.95

Interval = list[float | None]
"""Lower and upper end; an end is None where the resamples do not bound it."""


class GateError(ReleaseError):
    """A set that may not be published: it was not worth more than what needs no hospital."""

    exit_code = 4
    code = "gate"


@dataclass(frozen=True)
class Gate:
    """Whether a set may be published, why, and the figures that decided."""

    passed: bool
    reason: str
    figures: dict[str, Any]


def row(psnr_db: ArrayLike, ssim: ArrayLike, **more: Any) -> dict[str, Any]:
    """A table row of (runs, patients) figures; ``more`` is added as it is.

    ``mean``, ``std`` (of a sample) and ``n`` are over the runs' patient means.
    """
    made: dict[str, Any] = {}
    for name, values in (("psnr", psnr_db), ("ssim", ssim)):
        runs = np.asarray(values, dtype=np.float64).mean(axis=1)
        spread = float(runs.std(ddof=1)) if len(runs) > 1 else 0.0
        made[name] = {"mean": float(runs.mean()), "std": spread, "n": len(runs)}
    patients = [float(value) for value in np.asarray(psnr_db, dtype=np.float64).mean(axis=0)]
    return {**made, "patients": patients, **more}


def figures(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What follows from the rows; a figure is None where a row it needs is absent.

    ``worth_of_hospital_data`` is ``full`` minus the best null, ``share_recovered`` the part of it
    that the distilled set brought, None where it is not positive. ``gap_closed`` is the same with
    the prior in place of the best null.
    """
    psnr = {name: float(one["psnr"]["mean"]) for name, one in rows.items()}
    best = best_null(rows)

    def over(above: str, below: str | None) -> float | None:
        if below is None or above not in psnr or below not in psnr:
            return None
        return psnr[above] - psnr[below]

    gain, worth = over("distilled", best), over("full", best)
    return {
        "best_null": best,
        "worth_of_hospital_data": worth,
        "worth_interval": _difference_interval(rows, "full", best),
        "gain_over_best_null": gain,
        "gain_interval": _difference_interval(rows, "distilled", best),
        "share_recovered": _share(gain, worth),
        "share_recovered_interval": _share_interval(rows, best),
        "gap_closed": _share(over("distilled", "prior"), over("full", "prior")),
        "distance_to_full": over("full", "distilled"),
        "distance_to_full_interval": _difference_interval(rows, "full", "distilled"),
        "above_real_same_bytes": over("distilled", "real_same_bytes"),
        "above_real_same_bytes_interval": _difference_interval(
            rows, "distilled", "real_same_bytes"
        ),
    }


def anchor_gain(
    anchor: Mapping[str, Any] | None, beginning: Mapping[str, Any] | None
) -> dict[str, Any]:
    """How much better the anchor is than the network it began as, which saw what is free alone.

    What the hospitals' answers taught, before any pair is made of it; None where one is not known.
    """
    if anchor is None or beginning is None:
        return {"anchor_gain": None, "anchor_gain_interval": None}
    rows = {"anchor": anchor, "beginning": beginning}
    return {
        "anchor_gain": float(anchor["psnr"]["mean"]) - float(beginning["psnr"]["mean"]),
        "anchor_gain_interval": _difference_interval(rows, "anchor", "beginning"),
    }


def best_null(rows: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The row of the highest mean PSNR among those that used no hospital data."""
    nulls = [name for name in rows if name not in HOSPITAL_ROWS]
    return max(nulls, key=lambda name: float(rows[name]["psnr"]["mean"]), default=None)


def resampled_means(values: Mapping[str, Sequence[float]]) -> dict[str, FloatArray]:
    """Means (RESAMPLES,) of each row over the same resampled patients: paired.

    Always the same resamples for the same number of patients. Raises ``ValueError`` where rows have
    different numbers of patients, or none.
    """
    counts = {len(of_row) for of_row in values.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"rows must have the same patients, they have {sorted(counts)}")
    (patients,) = counts
    drawn = _times_drawn(patients)
    return {
        name: drawn @ np.asarray(of_row, dtype=np.float64) / patients
        for name, of_row in values.items()
    }


@lru_cache(maxsize=2)
def _times_drawn(patients: int) -> FloatArray:
    """How often each resample holds each patient: (RESAMPLES, patients)."""
    random = np.random.default_rng(BOOTSTRAP_SEED)
    shares = np.full(patients, 1 / patients)
    return random.multinomial(patients, shares, size=RESAMPLES).astype(np.float64)


def percentile_interval(statistic: FloatArray) -> Interval:
    """The central 95% of a resampled statistic; ends that are infinite become None."""
    tail = (1 - CONFIDENCE) / 2
    # Of the values themselves: interpolation between infinities is none.
    ends = np.quantile(statistic, [tail, 1 - tail], method="nearest")
    return [float(end) if math.isfinite(end) else None for end in ends]


def gate(table: Mapping[str, Any], *, margin_db: float = 0.0) -> Gate:
    """Whether the distilled set beats its prior and the best null by ``margin_db``; 0: is as good.

    The decision rests on the rows alone, whatever else the table claims. Never raises: a table that
    cannot be judged does not pass.
    """
    try:
        rows = table["rows"]
        psnr = {name: float(one["psnr"]["mean"]) for name, one in rows.items()}
        missing = [name for name in ("prior", "distilled") if name not in psnr]
        made = {} if missing else figures(rows)
    except (KeyError, TypeError, ValueError, AttributeError):
        return Gate(False, "the utility table is damaged: measure again", {})
    if missing:
        return Gate(False, f"the utility table lacks the row {' and '.join(missing)}", {})
    if not all(math.isfinite(value) for value in psnr.values()):
        return Gate(False, "the utility table holds figures that are not finite", {})
    best = made["best_null"]
    told = {
        "distilled": psnr["distilled"],
        "prior": psnr["prior"],
        "best_null": best,
        "best_null_psnr": psnr[best],
        "gain_over_prior": psnr["distilled"] - psnr["prior"],
        "gain_over_best_null": made["gain_over_best_null"],
        "gain_interval": made["gain_interval"],
    }
    for name in dict.fromkeys(("prior", best)):
        if psnr["distilled"] < psnr[name] + margin_db:
            wanted = f", {margin_db:+.2f} dB are wanted" if margin_db else ""
            return Gate(
                False,
                f"the distilled set trains to {psnr['distilled']:.2f} dB, "
                f"{name} without any hospital's data to {psnr[name]:.2f} dB "
                f"({psnr['distilled'] - psnr[name]:+.3f} dB{wanted})",
                told,
            )
    return Gate(True, _passed(told), told)


def refuse_unworthy(
    utility: Mapping[str, Any] | None,
    *,
    contract_digest: str,
    pairs_sha256: str,
    required: bool,
    margin_db: float = 0.0,
) -> Gate | None:
    """The gate's word on pairs about to be published; None where nothing was measured.

    Raises ``GateError`` where they do worse than their prior or the best null, where the table is
    of another contract or of other pairs, and where there is none though it is ``required``.
    """
    if utility is None:
        if required:
            raise GateError(
                "utility.json",
                "is absent, and aggregator.toml says require_utility = true",
                "measure the run and put the table into the run's folder",
            )
        return None
    if utility.get("contract_digest", contract_digest) != contract_digest:
        raise GateError("utility.json", "is of another contract: measure this run")
    if pairs_sha256 not in utility.get("pairs_sha256", [pairs_sha256]):
        raise GateError("utility.json", "is of other pairs: measure this run")
    decided = gate(utility, margin_db=margin_db)
    if not decided.passed:
        raise GateError(
            "utility.json",
            f"not published: {decided.reason}",
            "change the contract; what needs no hospital would serve its users better",
        )
    return decided


def pairs_digest(lq: NDArray[np.float32], hq: NDArray[np.float32]) -> str:
    """SHA-256 (hex) of a set's values: which pairs a table was measured on."""
    content = hashlib.sha256()
    for images in (lq, hq):
        content.update(np.ascontiguousarray(images, "<f4").tobytes())
    return content.hexdigest()


def _passed(told: Mapping[str, Any]) -> str:
    text = (
        f"{told['gain_over_best_null']:+.2f} dB over {told['best_null']}, "
        f"{told['gain_over_prior']:+.2f} dB over prior"
    )
    interval = told["gain_interval"]
    if interval is None:
        return text
    low, high = interval
    unsure = "; the patients do not tell it from none" if low is None or low <= 0 else ""
    return f"{text} (95% of patients' resamples: {_end(low)} to {_end(high)}){unsure}"


def table_text(table: Mapping[str, Any]) -> str:
    """The utility table for people: a line a row, then what follows from it."""
    lines = [f"{'trained on':<20} {'PSNR, dB':>15} {'SSIM':>17}  runs"]
    for name, one in table["rows"].items():
        psnr, ssim = one["psnr"], one["ssim"]
        variant = f"  {one['variant']}" if one.get("variant") else ""
        lines.append(
            f"{name:<20} {psnr['mean']:>7.2f} ± {psnr['std']:<5.2f} "
            f"{ssim['mean']:>8.4f} ± {ssim['std']:<6.4f} {psnr['n']:>4}{variant}"
        )
    lines.append(f"{'best_null':<24} {table['best_null']}")
    for name, interval, form in (
        ("gain_over_best_null", "gain_interval", "+.2f"),
        ("worth_of_hospital_data", "worth_interval", "+.2f"),
        ("share_recovered", "share_recovered_interval", ".0%"),
        ("gap_closed", None, ".0%"),
        ("distance_to_full", "distance_to_full_interval", "+.2f"),
        ("above_real_same_bytes", "above_real_same_bytes_interval", "+.2f"),
        ("anchor_gain", "anchor_gain_interval", "+.2f"),
    ):
        value = table.get(name)
        text = "–" if value is None else format(value, form)
        unit = "" if value is None or form.endswith("%") else " dB"
        ends = table.get(interval) if interval and value is not None else None
        between = f"  [{_end(ends[0], form)}, {_end(ends[1], form)}]" if ends else ""
        lines.append(f"{name:<24} {text}{unit}{between}")
    for name in ("releases", "requests", "bytes_published", "bytes_raw"):
        if table.get(name) is not None:
            lines.append(f"{name:<24} {table[name]:,}")
    return "\n".join(lines)


def _end(value: float | None, form: str = "+.2f") -> str:
    return "unbounded" if value is None else format(value, form)


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole is not None and whole > 0 else None


def _of_patients(
    rows: Mapping[str, Mapping[str, Any]], names: Sequence[str | None]
) -> dict[str, FloatArray] | None:
    """Resampled means of the named rows; None where one is absent or has no patients' figures."""
    if any(name is None or not rows.get(name, {}).get("patients") for name in names):
        return None
    return resampled_means({name: rows[name]["patients"] for name in names if name is not None})


def _difference_interval(
    rows: Mapping[str, Mapping[str, Any]], above: str, below: str | None
) -> Interval | None:
    means = _of_patients(rows, (above, below))
    if means is None or below is None:
        return None
    return percentile_interval(means[above] - means[below])


def _share_interval(rows: Mapping[str, Mapping[str, Any]], best: str | None) -> Interval | None:
    """The ratio in every resample; one where full data is worth nothing counts as unbounded."""
    means = _of_patients(rows, ("distilled", "full", best))
    if means is None or best is None:
        return None
    if float(rows["full"]["psnr"]["mean"]) <= float(rows[best]["psnr"]["mean"]):
        return None
    gain, worth = means["distilled"] - means[best], means["full"] - means[best]
    unbounded = np.copysign(np.inf, gain)
    share = np.divide(gain, worth, out=unbounded, where=worth > 0)
    return percentile_interval(share)
