"""Fits an enhancement network on a release and scores it on a folder of images.

Every figure is a mean over patients; its spread is the standard deviation over seeds. The untouched
input is scored with the same noise, so that a gain is a gain over something.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shared.contract import RunContract
from shared.frozen import canonical_json, explain
from shared.readers import ReaderError, read_images
from shared.release.dataset import DistilledPairs
from shared.release.errors import LocalError
from shared.release.manifest import Verified

try:
    import torch
    from safetensors.torch import save

    from shared.networks import parameter_count
    from shared.training import Score, evaluate, fit_pairs
except ImportError as error:
    raise LocalError(
        error.name or "a package",
        "is not installed",
        "install what training needs with `pip install 'fedstill[train]'`",
    ) from None

PROVENANCE = "provenance.json"

OnStep = Callable[[int, int], None]
"""Called with the steps done and the steps in all, over every seed."""


@dataclass(frozen=True)
class Trained:
    """The outcome of a training."""

    report: dict[str, Any]
    """``rows`` by name, each ``{"psnr": {"mean", "std", "n"}, "ssim": {…}}``, and the settings."""
    weights: bytes
    """The network of the first seed, a safetensors file."""


def read_contract_of(folder: Path) -> RunContract:
    """The contract in a release's provenance.json; raises ``LocalError``."""
    path = folder / PROVENANCE
    try:
        document = json.loads(path.read_bytes())
        return RunContract.model_validate(document["contract"])
    except OSError as error:
        raise LocalError(str(path), f"cannot be read ({error.strerror})") from None
    except ValidationError as error:
        raise LocalError(
            str(path), f"has a contract of another version ({explain(error)})", "upgrade fedstill"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise LocalError(str(path), "is not the provenance of a release") from None


def read_patients(folder: Path, contract: RunContract) -> list["torch.Tensor"]:
    """Every patient's slices below ``folder``, (n_i, 1, S, S) each in the contract's window.

    DICOM or NIfTI, read by whichever package registered a reader. Raises ``LocalError``.
    """
    task = contract.task
    try:
        images = read_images(
            folder,
            size_px=task.size_px,
            low=task.window[0],
            high=task.window[1],
            modality=task.modality,
        )
    except ReaderError as error:
        raise LocalError(str(folder), error.problem, error.hint) from None
    return [torch.from_numpy(slices) for slices in images]


def train(
    folder: Path,
    *,
    verified: Verified,
    patients: Sequence["torch.Tensor"],
    steps: int,
    seeds: int,
    on_step: OnStep | None = None,
) -> Trained:
    """Fits the contract's student ``seeds`` times on the release in ``folder`` and scores each."""
    contract = read_contract_of(folder)
    pairs = DistilledPairs(folder)
    network, task = contract.student, contract.task
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    untouched: list[Score] = []
    distilled: list[Score] = []
    kept = b""
    for seed in range(seeds):

        def report_step(done: int, _: int, seed: int = seed) -> None:
            if on_step is not None:
                on_step(seed * steps + done, seeds * steps)

        weights = fit_pairs(
            lq=pairs.lq,
            hq=pairs.hq,
            network=network,
            steps=steps,
            seed=seed,
            device=device,
            on_step=report_step,
        )
        if seed == 0:
            about = canonical_json(
                {
                    "network": network.model_dump(mode="json"),
                    "parameters": parameter_count(network),
                    "release": _identity(verified),
                    "seed": seed,
                    "steps": steps,
                    "task": task.model_dump(mode="json"),
                }
            ).decode("utf-8")
            kept = save({"weights": weights.cpu().contiguous()}, metadata={"fedstill": about})
        for scores, given in ((untouched, None), (distilled, weights)):
            scores.append(
                evaluate(
                    weights=given,
                    network=network,
                    patients=patients,
                    task=task,
                    seed=seed,
                    device=device,
                )
            )
    report = {
        "release": _identity(verified),
        "pairs": len(pairs),
        "network": network.model_dump(mode="json"),
        "steps": steps,
        "seeds": seeds,
        "patients": len(patients),
        "slices": sum(len(slices) for slices in patients),
        "device": device.type,
        "rows": {"input": _row(untouched), "distilled": _row(distilled)},
    }
    return Trained(report=report, weights=kept)


def _identity(verified: Verified) -> dict[str, Any]:
    version = verified.version
    return {
        "name": f"{version.namespace}/{version.name}",
        "version": version.number,
        "digest": verified.digest,
    }


def _row(scores: Sequence[Score]) -> dict[str, Any]:
    return {
        "psnr": _spread([statistics.fmean(score.psnr_db) for score in scores]),
        "ssim": _spread([statistics.fmean(score.ssim) for score in scores]),
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds; no spread from a single seed."""
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": std, "n": len(values)}
