"""The bank of released gradients: each costs privacy once and is used for many steps."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Entry:
    """One probe of the student network and the hospitals' mean gradient there."""

    round: int
    weights: Tensor  # (D,)
    target: Tensor  # (D,)


@dataclass
class Bank:
    """All entries in the order they came."""

    entries: list[Entry] = field(default_factory=list)

    def add(self, *, round: int, weights: Tensor, targets: Tensor) -> None:
        """Banks a request: ``weights`` and ``targets`` are (K, D)."""
        self.entries += [
            Entry(round, theta, target) for theta, target in zip(weights, targets, strict=True)
        ]

    def recent(self, requests: int) -> Sequence[Entry]:
        """The entries of the last ``requests`` rounds: older probes lie off the trajectory."""
        rounds = sorted({entry.round for entry in self.entries})[-requests:]
        return [entry for entry in self.entries if entry.round in rounds]

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, for the checkpoint."""
        if not self.entries:
            return {}
        return {
            "rounds": torch.tensor([entry.round for entry in self.entries]),
            "weights": torch.stack([entry.weights for entry in self.entries]),
            "targets": torch.stack([entry.target for entry in self.entries]),
        }

    @classmethod
    def restored(cls, state: dict[str, Tensor]) -> "Bank":
        """The bank whose :meth:`state` this is."""
        bank = cls()
        if state:
            for round_, weights, target in zip(
                state["rounds"].tolist(), state["weights"], state["targets"], strict=True
            ):
                bank.entries.append(Entry(int(round_), weights, target))
        return bank
