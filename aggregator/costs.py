"""What a contract costs a site that answers all of it, reckoned from shapes alone.

But for the seconds, which a site estimates itself and tells with a dry run.
"""

from pydantic import Field

from aggregator.distill.schedule import ask_of_round
from shared.contract import RunContract
from shared.frozen import Frozen
from shared.networks import parameter_count
from shared.standing import time_in_words

FLOAT_BYTES, RING_BYTES = 4, 8
"""Of a number in an answer, and of a masked one in a secure sum."""
HEADER_BYTES = 4096
"""A message around its numbers, about."""


class Cost(Frozen):
    """Of a whole run, for one site."""

    rounds: int = Field(description="requests")
    releases: int = Field(description="gradient vectors; at granularity patient, a patient")
    epsilon: float | None = Field(description="spent for each patient; none: no noise")
    delta: float | None
    bytes_down: int = Field(description="to the site, about")
    bytes_up: int = Field(description="from it, about; at granularity patient, of all of them")
    seconds: float | None = Field(
        None, description="of computing, by the site's own estimate; none: not told"
    )


def cost_of(
    contract: RunContract, *, patients: int | None = None, seconds: float | None = None
) -> Cost:
    """The cost of ``contract`` to a site of so many ``patients``; without, of the fewest.

    ``seconds`` are what the site has told.
    """
    releases = down = up = 0
    for number in range(1, contract.rounds + 1):
        ask = ask_of_round(contract, number)
        descent = ask.kind == "local-steps"
        rows = 1 if descent else len(contract.probes.depths)
        size = parameter_count(contract.network(ask.network))
        columns = contract.reduced_to(ask.kind) or size
        down += rows * size * FLOAT_BYTES + HEADER_BYTES
        if descent and contract.privacy.directions:
            down += contract.privacy.directions * size * FLOAT_BYTES
        by_patient = not descent and contract.granularity == "patient"
        each = RING_BYTES if contract.granularity == "federation" else FLOAT_BYTES
        answers = (patients or contract.min_patients) if by_patient else 1
        up += answers * rows * columns * each + HEADER_BYTES
        releases += rows
    private = contract.privacy.epsilon is not None
    return Cost(
        rounds=contract.rounds,
        releases=releases,
        epsilon=contract.privacy.epsilon,
        delta=contract.privacy.delta if private else None,
        bytes_down=down,
        bytes_up=up,
        seconds=seconds,
    )


def in_words(cost: Cost) -> str:
    """One line for a terminal."""
    spent = "no differential privacy"
    if cost.epsilon is not None:
        spent = f"ε {cost.epsilon:g} at δ {cost.delta:g}"
    computing = "" if cost.seconds is None else f", {time_in_words(cost.seconds)} of computing"
    return (
        f"{cost.rounds} rounds, {cost.releases} gradient vectors, {spent}, "
        f"{size_in_words(cost.bytes_down)} down, {size_in_words(cost.bytes_up)} up{computing}"
    )


def size_in_words(count: int) -> str:
    """A number of bytes, for people."""
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"
