"""Which question each Flower round asks: first the anchor's rounds, then the probes'."""

from dataclasses import dataclass
from typing import Literal

from shared.contract import Name, RunContract

LEARNING_RATE = 4e-3
"""Of the distilled images' parameters; at 0.01 they drift."""


@dataclass(frozen=True)
class Ask:
    """What one round sends."""

    round: int
    kind: Literal["gradients", "local-steps"]
    network: Name


def ask_of_round(contract: RunContract, round: int) -> Ask:
    """The question of round 1..``contract.rounds``. Raises ``ValueError`` outside.

    Probe requests go through ``probes.networks`` in turn.
    """
    if not 1 <= round <= contract.rounds:
        raise ValueError(f"round {round} is not in 1..{contract.rounds}")
    if round <= contract.anchor.rounds:
        return Ask(round, "local-steps", "anchor")
    networks = contract.probes.networks
    return Ask(round, "gradients", networks[(round - contract.anchor.rounds - 1) % len(networks)])
