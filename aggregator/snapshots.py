"""The pairs as they were after each round, kept in the run's folder for who watches the run.

``snapshots/0003.safetensors`` has ``lq`` and ``hq`` of some of the pairs, (n, 1, S, S) float16 in
window units, ``task`` (n,), each pair's place in the contract's tasks, and ``number`` (n,), its
image's. 0 is before the first round. A file is written once, before the round counts as kept, and
never changed: a round that is done again after a kill finds its own. Nothing is read back by the
run: with or without them it ends with the same pairs.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from shared.contract import RunContract
from shared.durable import write_durably
from shared.frozen import canonical_json
from shared.release.facts import pairs_facts, task_labels

if TYPE_CHECKING:  # the API reads snapshots, and has no torch
    from aggregator.distill.distiller import Distiller

FOLDER = "snapshots"
MOST_PAIRS = 8
MOST_BYTES = 2 * 1024 * 1024
"""Of the images of one file; one image of every task is kept in any case."""
_NAME = re.compile(r"(\d{4})\.safetensors")


class SnapshotError(RuntimeError):
    """A snapshot that is not there, or is damaged; the text says what to do."""


def chosen(contract: RunContract) -> list[int]:
    """Which images are kept, evenly spaced: the same in every round."""
    tasks, count = len(task_labels(contract.task)), contract.images
    of_one = 2 * 2 * tasks * contract.task.size_px**2
    most = max(1, min(MOST_PAIRS // tasks, MOST_BYTES // of_one))
    return sorted({round(k) for k in np.linspace(0, count - 1, min(count, most))})


def keep_snapshot(run: Path, distiller: "Distiller") -> None:
    """Writes the pairs as they are after the distiller's round, unless they are there."""
    file = snapshot_file(run, distiller.round)
    if file.exists():
        return
    contract = distiller.contract
    numbers, tasks = chosen(contract), len(task_labels(contract.task))
    lq, hq = distiller.pairs(of=numbers)
    about = {"contract_digest": contract.digest(), **pairs_facts(contract.task)}
    tensors: dict[str, NDArray[Any]] = {
        "lq": _half(lq.numpy()),
        "hq": _half(hq.numpy()),
        "number": np.tile(np.array(numbers, np.int32), tasks),
        "task": np.repeat(np.arange(tasks, dtype=np.int32), len(numbers)),
    }
    write_durably(file, save(tensors, metadata={"fedstill": canonical_json(about).decode()}))


def snapshot_file(run: Path, round: int) -> Path:
    """Where the pairs of a round are, or would be."""
    return run / FOLDER / f"{round:04d}.safetensors"


def snapshot_rounds(run: Path) -> list[int]:
    """The rounds there are pairs of, in their order."""
    try:
        names = [file.name for file in (run / FOLDER).iterdir()]
    except FileNotFoundError:
        return []
    return sorted(int(found[1]) for found in map(_NAME.fullmatch, names) if found)


def read_snapshot(run: Path, round: int) -> dict[str, NDArray[Any]]:
    """The tensors of a round. Raises ``SnapshotError``."""
    try:
        tensors: dict[str, NDArray[Any]] = load_file(snapshot_file(run, round))
    except FileNotFoundError:
        raise SnapshotError(f"no pairs were kept after round {round}") from None
    except (OSError, SafetensorError):
        raise SnapshotError(
            f"{FOLDER}/{snapshot_file(run, round).name} of the run is damaged: remove it"
        ) from None
    return tensors


def _half(images: NDArray[np.float32]) -> NDArray[np.float16]:
    return np.ascontiguousarray(images, np.float16)
