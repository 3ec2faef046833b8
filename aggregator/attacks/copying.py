"""Are released images copies? Their likeness to participants, beside that to people never seen.

Of every released image the nearest slice of anybody is looked for: among participants, and among
people who took no part; SSIM and NCC, aligned alike (:mod:`shared.similarity`). A set
that copies nobody should come as near to the ones as to the others, but numbers, scanners and
chance make that untrue for any few people. So the *null* is the undistilled prior: its ratio of the
two is what this choice of people gives to images that owe them nothing.

- ``ratio``: likeness to participants over likeness to the unseen, both means over the images.
- ``ratio_to_null``: the same over the null's. The bar is 1.05. The interval is of resampled people,
  a third of whom each resample leaves out: where one person was copied, it lies below the figure.
- ``above``: images that are nearer to a participant than 99 in 100 slices of unseen people are.
  None may be, unless the null's are.
- ``to_source``: likeness to the images that the set was started from, which is high by design, and
  says why an enrolled patient may never be the prior.

The control is a set that was started from participants' slices, and warped and toned at random.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aggregator.attacks.intervals import Floats
from aggregator.attacks.inversion import evenly
from aggregator.attacks.scene import Scene
from aggregator.distill.controls import prior_warped
from aggregator.utility import percentile_interval
from shared.similarity import Likeness, to_patients

RATIO_BAR = 1.05
PERCENTILE = 99
RESAMPLES = 2000
SEED = 1
MEASURES = ("ssim", "ncc")


@dataclass(frozen=True)
class Set:
    """Likeness of a set's images to people and to where it came from."""

    participants: Likeness
    unseen: Likeness
    source: Likeness
    images: int


def measure(scene: Scene, released: Tensor, *, seed: int) -> dict[str, Any]:
    """Likeness of ``released`` images (N, 1, S, S), in window units, beside null and control."""
    slices = torch.cat([patient[:1] for patient in scene.participants])
    copied = replace(scene.prior, start=evenly(slices, len(released)))
    start = scene.prior.start
    sets = {
        "null": _compared(scene, start, start),
        "released": _compared(scene, released, start),
        "control": _compared(scene, prior_warped(scene.contract, copied, seed=seed), copied.start),
    }
    strangers = to_patients(torch.cat(list(scene.unseen)), scene.participants)
    rows = [row for by in MEASURES for row in _rows(sets, strangers, by)]
    return {
        "rows": rows,
        "bar": {"ratio_to_null": RATIO_BAR, "above": "the null's"},
        "passed": all(_bears(row, rows) for row in rows if row["set"] == "released"),
        "control_succeeded": any(
            row["ratio_to_null"]["mean"] > RATIO_BAR for row in rows if row["set"] == "control"
        ),
        "participants": len(scene.participants),
        "unseen": len(scene.unseen),
        "seed": seed,
    }


def _compared(scene: Scene, images: Tensor, source: Tensor) -> Set:
    return Set(
        to_patients(images, scene.participants),
        to_patients(images, scene.unseen),
        to_patients(images, [source]),
        len(images),
    )


def _rows(sets: Mapping[str, Set], strangers: Likeness, by: str) -> list[dict[str, Any]]:
    """A row a set, by one measure; ``strangers`` are slices of unseen people."""

    def values(of: Likeness) -> Floats:
        found: Floats = getattr(of, by).double().cpu().numpy()
        return found

    limit = float(np.percentile(values(strangers).max(axis=1), PERCENTILE))
    near = {name: values(one.participants) for name, one in sets.items()}
    far = {name: values(one.unseen) for name, one in sets.items()}
    ratios = {name: _ratio(near[name], far[name]) for name in sets}
    resampled = {name: _resampled_ratios(near[name], far[name]) for name in sets}
    rows = []
    for name, one in sets.items():
        nearest = near[name].max(axis=1)
        rows.append(
            {
                "set": name,
                "by": by,
                "to_participants": float(nearest.mean()),
                "to_unseen": float(far[name].max(axis=1).mean()),
                "to_source": float(values(one.source).mean()),
                "ratio": ratios[name],
                "ratio_to_null": {
                    "mean": ratios[name] / ratios["null"],
                    "interval": percentile_interval(resampled[name] / resampled["null"]),
                },
                "above": int((nearest > limit).sum()),
                "limit": limit,
                "images": one.images,
            }
        )
    return rows


def _bears(row: Mapping[str, Any], rows: list[dict[str, Any]]) -> bool:
    """Whether a row keeps to the bars."""
    (null,) = (one for one in rows if one["set"] == "null" and one["by"] == row["by"])
    ratio: float = row["ratio_to_null"]["mean"]
    return ratio <= RATIO_BAR and bool(row["above"] <= null["above"])


def _ratio(near: Floats, far: Floats) -> float:
    """Of the nearest of (N, P) to the nearest of (N, U), means over N images."""
    return float(near.max(axis=1).mean() / far.max(axis=1).mean())


def _resampled_ratios(near: Floats, far: Floats) -> Floats:
    """Ratios (RESAMPLES,) of resampled people: always the same draws, so that sets are paired."""
    random = np.random.default_rng(SEED)

    def people(values: Floats) -> Floats:
        drawn: Floats = values[:, random.integers(values.shape[1], size=values.shape[1])]
        return drawn

    return np.array([_ratio(people(near), people(far)) for _ in range(RESAMPLES)])
