"""Runs as they would be in a home, made in milliseconds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from aggregator.snapshots import snapshot_file
from shared.contract import RunContract
from shared.durable import write_durably
from shared.frozen import canonical_json
from shared.release.facts import pairs_facts


def images(round: int, *, size_px: int = 128, count: int = 3) -> dict[str, np.ndarray]:
    """Pairs of a round, float16; no two rounds, nor two images, have the same."""
    column = np.linspace(0, 1, size_px, dtype=np.float32)
    hq = np.stack([np.roll(np.outer(column, column), 7 * k + round, axis=1) for k in range(count)])
    lq = hq + np.float32(0.01) * (1 + round)
    both = {"hq": hq[:, None].astype(np.float16), "lq": lq[:, None].astype(np.float16)}
    return {**both, "number": np.arange(count, dtype=np.int32), "task": np.zeros(count, np.int32)}


def snapshot(run: Path, contract: RunContract, round: int) -> None:
    """Keeps the pairs of a round in the run's folder."""
    about = {"contract_digest": contract.digest(), **pairs_facts(contract.task)}
    metadata = {"fedstill": canonical_json(about).decode()}
    tensors = images(round, size_px=contract.task.size_px)
    write_durably(snapshot_file(run, round), save(tensors, metadata=metadata))


def tell(run: Path, *events: dict[str, Any]) -> None:
    """Appends to the run's journal."""
    with (run / "events.jsonl").open("a") as journal:
        journal.writelines(json.dumps(event) + "\n" for event in events)


def ended(round: int, *, time: float, personas: Sequence[str] = ("all sites",)) -> dict[str, Any]:
    """The event that ends a round of probes."""
    return {
        "time": time,
        "phase": "distil",
        "round": round,
        "ended": {
            "asked": "probes",
            "seconds": 40.0 + round,
            "sites": 2,
            "bytes_up": 1024 * round,
            "bytes_down": 2048 * round,
            "loss": 1 / round,
            "cosine": [0.5 + 0.01 * (round + k) for k in range(len(personas))],
            "personas": list(personas),
        },
    }


def waiting(site: str, state: str, *, time: float, reason: str = "") -> dict[str, Any]:
    """An event that says what a site does."""
    said = {site: {"state": state, "waited_s": 4.0, "reason": reason}}
    return {"time": time, "phase": "probes", "round": 3, "done": 1, "total": 2, "sites": said}
