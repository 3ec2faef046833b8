"""A release as a PyTorch dataset."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from shared.release.cached_release import cached
from shared.release.errors import LocalError

try:
    from torch.utils.data import Dataset
except ImportError:
    raise LocalError(
        "torch", "is not installed", "install it with `pip install 'fedstill[train]'`"
    ) from None

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

if TYPE_CHECKING:
    from torch import Tensor

PAIRS = "pairs.safetensors"


class DistilledPairs(Dataset[tuple["Tensor", "Tensor"]]):
    """The pairs of a release: item k is ``(lq, hq)``, float32 (1, S, S) each, in window units.

    ``tasks[k]`` names the task that pair k is of. ``place`` is a folder that `distilled get` left,
    in which nothing is verified here; or the address of a dataset's page, as
    ``https://host/datasets/fedstill/demo-ct/v1``: that release is brought into the cache and
    verified, with the token in FEDSTILL_TOKEN if there is one. Raises ``LocalError`` where there
    are no pairs, ``ValueError`` on an address that is none, and what ``client.get`` does.
    """

    def __init__(self, place: str | Path) -> None:
        folder = Path(place)
        if isinstance(place, str) and "://" in place:
            folder = cached(place, token=os.environ.get("FEDSTILL_TOKEN") or None)
        path = folder / PAIRS
        try:
            tensors = load_file(path)
            self.lq, self.hq = tensors["lq"], tensors["hq"]
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("fedstill", "{}"))
            # Releases of one task may have neither an index nor a list of names.
            names = about.get("tasks") or [about.get("task", "")]
            index = tensors["task"].tolist() if "task" in tensors else [0] * len(self.lq)
            self.tasks: list[str] = [names[which] for which in index]
        except (OSError, SafetensorError, LookupError, ValueError, AttributeError, TypeError):
            raise LocalError(
                str(path), "cannot be read as pairs", "is this the folder of a release?"
            ) from None

    def __len__(self) -> int:
        return len(self.lq)

    def __getitem__(self, index: int) -> tuple["Tensor", "Tensor"]:
        return self.lq[index], self.hq[index]
