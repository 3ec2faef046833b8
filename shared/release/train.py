"""Fits an enhancement network on a release and scores it on a folder of images.

Every figure is a mean over patients; its spread is the standard deviation over seeds. The untouched
input is scored with the same noise, so that a gain is a gain over something.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shared.architectures import Network
from shared.contract import RunContract
from shared.frozen import explain
from shared.readers import ReaderError, read_images
from shared.release.dataset import DistilledPairs
from shared.release.errors import LocalError
from shared.release.facts import task_labels
from shared.release.manifest import Verified
from shared.release.model import About, model_bytes
from shared.release.model_card import model_card, titled_rows
from shared.release.provenance import read_predicate

try:
    import torch

    from shared.networks import parameter_count
    from shared.tasks.degradation import parts
    from shared.training import BATCH, CROP_PX, LEARNING_RATE, Score, evaluate, fit_pairs
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
    """``rows`` by name, each ``{"psnr": {"mean", "std", "n"}, "ssim": {…}}``, and the settings.

    Of a release for several tasks the rows are means over them, and ``tasks`` has each one's own.
    """
    model: bytes
    """The network of the first seed: a model file."""
    card: str
    """Its model card."""


def read_contract_of(folder: Path) -> RunContract:
    """The contract in a release's provenance.json; raises ``LocalError``."""
    path = folder / PROVENANCE
    try:
        return RunContract.model_validate(read_predicate(path.read_bytes())["contract"])
    except OSError as error:
        raise LocalError(str(path), f"cannot be read ({error.strerror})") from None
    except ValidationError as error:
        raise LocalError(
            str(path), f"has a contract of another version ({explain(error)})", "upgrade fedstill"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise LocalError(str(path), "is not the provenance of a release") from None


def read_patients(
    folder: Path, contract: RunContract, *, sequence: str | None = None
) -> list["torch.Tensor"]:
    """Every patient's slices below ``folder``, (n_i, 1, S, S) each in the contract's window.

    DICOM or NIfTI of the contract's modality, read by whichever package registered a reader;
    ``sequence`` chooses among MR series. Raises ``LocalError``.
    """
    task = contract.task
    low, high = task.window
    try:
        images = read_images(
            folder,
            size_px=task.size_px,
            low=low,
            high=high,
            modality=task.modality,
            sequence=sequence,
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
    network: Network | None = None,
    on_step: OnStep | None = None,
) -> Trained:
    """Fits ``network`` ``seeds`` times on the release in ``folder`` and scores each.

    The release's own network where none is named.
    """
    contract = read_contract_of(folder)
    pairs = DistilledPairs(folder)
    network, task = network or contract.student, contract.task
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    labels = task_labels(task)
    untouched: list[list[Score]] = []
    distilled: list[list[Score]] = []
    model = b""
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
            release = _identity(verified)
            about = About(network=network, task=task, release=release, steps=steps, seed=seed)
            model = model_bytes(about, weights)
        for scores, given in ((untouched, None), (distilled, weights)):
            scores.append(
                [
                    evaluate(
                        weights=given,
                        network=network,
                        patients=patients,
                        task=part,
                        seed=seed,
                        device=device,
                    )
                    for part in parts(task)
                ]
            )
    arms = {"input": untouched, "distilled": distilled}
    report = {
        "release": _identity(verified),
        "pairs": len(pairs),
        "network": network.model_dump(mode="json"),
        "parameters": parameter_count(network),
        "steps": steps,
        "batch": BATCH,
        "crop_px": min(CROP_PX, task.size_px),
        "learning_rate": LEARNING_RATE,
        "seeds": seeds,
        "patients": len(patients),
        "slices": sum(len(slices) for slices in patients),
        "device": device.type,
        "rows": {name: _row(scores) for name, scores in arms.items()},
    }
    if len(labels) > 1:
        report["tasks"] = {
            label: {name: _row([[of[k]] for of in scores]) for name, scores in arms.items()}
            for k, label in enumerate(labels)
        }
    card = model_card(report, network=network, task=task, license=verified.manifest.license)
    return Trained(report=report, model=model, card=card)


def report_text(report: dict[str, Any]) -> str:
    """The figures for people: a line a row."""
    rows = titled_rows(report)
    wide = max(12, *(len(title) + 2 for title, _ in rows))
    lines = [
        f"{report['network']['kind']}, {report['parameters']:,} parameters; {report['pairs']} "
        f"pairs, {report['steps']} steps, {report['seeds']} seeds; {report['patients']} patients, "
        f"{report['slices']} slices; on {report['device']}",
        f"{'':<{wide}}{'PSNR, dB':>16}{'SSIM':>20}",
    ]
    for title, row in rows:
        psnr, ssim = row["psnr"], row["ssim"]
        lines.append(
            f"{title:<{wide}}{psnr['mean']:>8.2f} ± {psnr['std']:<5.2f}"
            f"{ssim['mean']:>12.4f} ± {ssim['std']:.4f}"
        )
    return "\n".join(lines)


def _identity(verified: Verified) -> dict[str, Any]:
    version = verified.version
    return {
        "name": f"{version.namespace}/{version.name}",
        "version": version.number,
        "digest": verified.digest,
    }


def _row(scores: Sequence[Sequence[Score]]) -> dict[str, Any]:
    """A row of each seed's scores, one a task: means over tasks and patients, then over seeds."""
    mean = statistics.fmean
    return {
        "psnr": _spread([mean(mean(one.psnr_db) for one in tasks) for tasks in scores]),
        "ssim": _spread([mean(mean(one.ssim) for one in tasks) for tasks in scores]),
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds; no spread from a single seed."""
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": std, "n": len(values)}
