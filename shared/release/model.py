"""A trained enhancement network as a file: `distilled train --save` writes it, this reads it.

``model.safetensors`` holds one tensor, ``weights`` (D,), float32, and under the metadata key
``fedstill`` canonical JSON: the network, the task, and what it was trained on. ``MODEL_CARD.md``
beside it says the same to people.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.architectures import Network
from shared.frozen import canonical_json, explain
from shared.release.errors import LocalError
from shared.release.model_card import MODEL
from shared.tasks.settings import Task

try:
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save
    from torch import Tensor

    from shared.networks import parameter_count
    from shared.training import enhance
except ImportError as error:
    raise LocalError(
        error.name or "a package",
        "is not installed",
        "install what networks need with `pip install 'fedstill[train]'`",
    ) from None

LEAST_PX = 8


class About(BaseModel):
    """The metadata of a model file."""

    model_config = ConfigDict(frozen=True)
    format: Literal["fedstill-model/1"] = "fedstill-model/1"
    network: Network
    task: Task
    release: dict[str, Any]
    steps: int
    seed: int


@dataclass(frozen=True, eq=False)
class Enhancer:
    """A trained network, called with low-quality images; made by :func:`load_model`."""

    about: About
    weights: Tensor  # (D,)

    @property
    def network(self) -> Network:
        """The description of the network."""
        return self.about.network

    @property
    def task(self) -> Task:
        """What it was trained to undo; its ``window`` is what 0 and 1 of an image are."""
        return self.about.task

    def __call__(self, lq: Tensor) -> Tensor:
        """The enhanced version of ``lq``, both (N, 1, H, W) in window units, on its device.

        Raises ``ValueError`` on another shape, and on images below 8 pixels.
        """
        if lq.ndim != 4 or lq.shape[1] != 1 or min(lq.shape[-2:]) < LEAST_PX:
            raise ValueError(
                f"images must be (N, 1, H, W) of at least {LEAST_PX} pixels, not {tuple(lq.shape)}"
            )
        return enhance(self.network, self.weights.to(lq.device), lq.to(self.weights.dtype))


def model_bytes(about: About, weights: Tensor) -> bytes:
    """The model file of ``weights`` (D,)."""
    text = canonical_json(about.model_dump(mode="json")).decode("utf-8")
    return save({"weights": weights.detach().cpu().contiguous()}, metadata={"fedstill": text})


def load_model(path: str | Path) -> Enhancer:
    """The network in ``path``: the folder that `distilled train --save` wrote, or its model file.

    Raises ``LocalError`` where there is none, or not one of ours.
    """
    file = Path(path) / MODEL if Path(path).is_dir() else Path(path)
    try:
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {})["fedstill"]
            weights: Tensor = opened.get_tensor("weights")
        about = About.model_validate(json.loads(text))
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise LocalError(str(file), problem, _HINT) from None
    except ValidationError as error:
        problem = f"is of another version ({explain(error)})"
        raise LocalError(str(file), problem, "upgrade fedstill") from None
    except (SafetensorError, KeyError, ValueError):
        raise LocalError(str(file), "is not a model of fedstill", _HINT) from None
    if weights.shape != (parameter_count(about.network),) or weights.dtype != torch.float32:
        problem = f"holds {weights.dtype} {tuple(weights.shape)}, not the weights of its network"
        raise LocalError(str(file), problem, _HINT)
    return Enhancer(about, weights)


_HINT = "give the folder that `distilled train --save` wrote"
