"""What the hospitals said of a finished run, and the utility table that follows from it.

``evaluation.json`` in a run's folder is a :class:`Judgement`: every site's figures and verdict as
they came. A row of the table is, training by training, the mean of the sites' figures weighted by
the buckets of their patients' numbers: no exact number leaves a site.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from aggregator.utility import figures
from shared.contract import Hex32, RunContract
from shared.durable import write_durably
from shared.frozen import Frozen, Slug
from shared.judging import PSNR_STEP_DB, SSIM_STEP

EVALUATION = "evaluation.json"
HOSPITALS = "hospitals"
"""What a row says where it was measured there."""


class JudgementError(RuntimeError):
    """An ``evaluation.json`` that cannot be read; names the file and the fix."""


class SiteFigures(Frozen):
    """One site's means over the patients it kept back: the input, the networks, the anchor."""

    psnr_db: tuple[float, ...]
    ssim: tuple[float, ...]
    patients_at_least: int


class SiteVerdict(Frozen):
    """One site's word on the images."""

    passed: bool
    ratio_ssim: float
    ratio_ncc: float
    too_alike: tuple[int, ...]


class Judgement(Frozen):
    """Everything known of a run after its pairs were there."""

    contract_digest: Hex32
    pairs_sha256: Hex32
    sets: tuple[str, ...] = Field(description="training sets, ``seeds`` networks each")
    seeds: int = Field(ge=1)
    anchor: bool = Field(description="whether the anchor itself was judged, last")
    source_ssim: tuple[float, ...] = Field(description="each image's to what it was started from")
    source_ncc: tuple[float, ...]
    asked: tuple[Slug, ...]
    figures: dict[str, SiteFigures] = Field(default_factory=dict)
    verdicts: dict[str, SiteVerdict] = Field(default_factory=dict)
    problems: dict[str, str] = Field(default_factory=dict, description="why a site gave none")

    @property
    def networks(self) -> int:
        """How many figures a site gives: the input's too."""
        return 1 + len(self.sets) * self.seeds + self.anchor


def read_judgement(run: Path) -> Judgement | None:
    """What the hospitals said so far; None where nobody was asked. Raises ``JudgementError``."""
    path = run / EVALUATION
    try:
        return Judgement.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise JudgementError(f"{path} is damaged: move it away and launch again") from None


def keep_judgement(run: Path, judgement: Judgement) -> None:
    """Replaces the file, whole."""
    write_durably(run / EVALUATION, judgement.model_dump_json(indent=2).encode())


def is_judged(run: Path, contract: RunContract) -> bool:
    """Whether every site that was asked has said all that the contract wants of it.

    Raises ``JudgementError``.
    """
    plan, judgement = contract.evaluation, read_judgement(run)
    if not plan.sites:
        return True
    if judgement is None:
        return False
    missing = set(judgement.asked) - set(judgement.figures)
    if plan.veto:
        missing |= set(judgement.asked) - set(judgement.verdicts)
    return not missing


def hospital_table(
    judgement: Judgement, contract: RunContract, *, result: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The utility table, as :mod:`aggregator.utility` has it; None where no site gave figures.

    Without patients' own figures, which stay at the sites, there are no intervals.
    """
    if not judgement.figures:
        return None
    sites = list(judgement.figures.values())
    shares = np.array([one.patients_at_least for one in sites], dtype=np.float64)
    shares /= shares.sum()
    psnr_db, ssim = (shares @ np.array([getattr(one, name) for one in sites]) for name in _FIGURES)
    places = {"input": slice(0, 1)}
    for number, name in enumerate(judgement.sets):
        first = 1 + number * judgement.seeds
        places[name] = slice(first, first + judgement.seeds)
    if judgement.anchor:
        places["anchor"] = slice(judgement.networks - 1, judgement.networks)
    rows: dict[str, dict[str, Any]] = {
        name: {
            "psnr": _spread(psnr_db[place]),
            "ssim": _spread(ssim[place]),
            "measured_at": HOSPITALS,
        }
        for name, place in places.items()
    }
    hospitals = "hospital" if len(sites) == 1 else "hospitals"
    return {
        "rows": rows,
        **figures(rows),
        "contract_digest": judgement.contract_digest,
        "pairs_sha256": [judgement.pairs_sha256],
        "judge": contract.student.model_dump(mode="json"),
        "steps": contract.evaluation.steps,
        "judge_seeds": judgement.seeds,
        "distillations": 1,
        "measured_at": HOSPITALS,
        "evaluation": (
            f"Measured at {len(sites)} {hospitals}, on patients of theirs kept out of the run: "
            f"the mean of what each says, in steps of {PSNR_STEP_DB:g} dB and {SSIM_STEP:g}, "
            "weighted by its patients' number rounded down to a bucket."
        ),
        **{name: result[name] for name in ("releases", "requests") if name in result},
    }


_FIGURES = ("psnr_db", "ssim")


def _spread(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float | int]:
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(values.mean()), "std": spread, "n": len(values)}
