"""The bank of released gradients: each costs privacy once and is used for many steps."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor

from shared.contract import Name
from shared.sketch import Sketch

NAMES: tuple[Name, ...] = get_args(Name)


@dataclass(frozen=True)
class Entry:
    """One probe of a network, and the hospitals' gradients there: one a persona."""

    round: int
    network: Name
    weights: Tensor  # (D,)
    targets: Tensor  # (G, R), image i follows target i mod G
    variance: Tensor  # (R,), of the mean over hospitals or patients
    scales: Tensor  # (L,) of the sketch that made D numbers R; (0,) where they are whole
    seed: int = 0
    """Of the sketch."""


@dataclass
class Bank:
    """All entries in the order they came."""

    entries: list[Entry] = field(default_factory=list)

    def add(
        self,
        *,
        round: int,
        network: Name,
        weights: Tensor,
        targets: Tensor,
        variance: Tensor,
        sketches: Sequence[Sketch] = (),
    ) -> None:
        """Banks a request: ``weights`` (K, D), ``variance`` (K, R), ``targets`` (G, K, R).

        ``sketches`` are those of its probes, where answers were sketched.
        """
        for row, theta in enumerate(weights):
            scales, seed = theta.new_empty(0), 0
            if sketches:
                scales, seed = sketches[row].scales, sketches[row].seed
            self.entries.append(
                Entry(round, network, theta, targets[:, row], variance[row], scales, seed)
            )

    def recent(self, requests: int) -> Sequence[Entry]:
        """The entries of the last ``requests`` rounds: older probes lie off the trajectory."""
        rounds = sorted({entry.round for entry in self.entries})[-requests:]
        return [entry for entry in self.entries if entry.round in rounds]

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, for the checkpoint; entries may differ in length and personas."""
        if not self.entries:
            return {}
        state = {
            "rounds": torch.tensor([entry.round for entry in self.entries]),
            "networks": torch.tensor([NAMES.index(entry.network) for entry in self.entries]),
            "seeds": torch.tensor([entry.seed for entry in self.entries]),
        }
        for number, entry in enumerate(self.entries):
            state[f"weights.{number}"] = entry.weights
            state[f"targets.{number}"] = entry.targets
            state[f"variance.{number}"] = entry.variance
            state[f"scales.{number}"] = entry.scales
        return state

    @classmethod
    def restored(cls, state: dict[str, Tensor]) -> "Bank":
        """The bank whose :meth:`state` this is. Raises ``KeyError`` on one that is not complete."""
        if not state:
            return cls()
        columns = (state[name].tolist() for name in ("rounds", "networks", "seeds"))
        return cls(
            [
                Entry(
                    round=int(round_),
                    network=NAMES[int(network)],
                    weights=state[f"weights.{number}"],
                    targets=state[f"targets.{number}"],
                    variance=state[f"variance.{number}"],
                    scales=state[f"scales.{number}"],
                    seed=int(seed),
                )
                for number, (round_, network, seed) in enumerate(zip(*columns, strict=True))
            ]
        )


def dealt(values: Tensor, images: int) -> Tensor:
    """Targets (min(G, images), ...) of values (G, ...), one of a hospital or patient each.

    Image i is to follow target i mod G. Where there are more than images, value i goes to image
    i mod N, and an image follows the mean of its own.
    """
    groups = min(len(values), images)
    return torch.stack([values[group::groups].mean(dim=0) for group in range(groups)])
