"""A release as a PyTorch dataset."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

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

    ``tasks[k]`` names the task that pair k is of. ``folder`` is a release that `distilled get`
    left; nothing is verified here. Raises ``LocalError`` where it holds no pairs.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder) / PAIRS
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
