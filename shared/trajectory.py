"""Where honest weights start, and how far they get: what an aggregator keeps to and a site checks.

No probe and no anchor comes from nowhere. Initial weights follow from the contract alone; from
there Adam goes some 1e-3 a step (:mod:`shared.training`), and an anchor moves by a mean of clipped
descents a round.
"""

import math

from torch import Tensor

from shared.bounds import block_bound
from shared.contract import Kind, Name, RunContract
from shared.gradients import request_seed
from shared.networks import initial_weights, parameter_count
from shared.training import LEARNING_RATE


def start_seed(contract: RunContract, *, kind: Kind, round: int) -> int:
    """Seed of the initial weights: of the anchor for the whole run, of probes for each request."""
    if kind == "local-steps":
        return request_seed(contract.foundation(), "public")
    return request_seed(contract.digest(), "probe", round)


def judge_seed(contract: RunContract, number: int) -> int:
    """Seed of the initial weights of a judged network: of each set's training ``number``."""
    return request_seed(contract.digest(), "judge", number)


def start(contract: RunContract, *, kind: Kind, network: Name, round: int) -> Tensor:
    """The initial weights (D,) that all weights of a request were trained from, on the CPU."""
    seed = start_seed(contract, kind=kind, round=round)
    return initial_weights(contract.network(network), seed=seed)


def stride(steps: int, *, of: int, learning_rate: float = LEARNING_RATE) -> float:
    """Root sum square of the learning rates of the first ``steps`` of a training ``of`` so many.

    What training moves a coordinate by grows with it: successive steps go hardly the same way. The
    sum over a cosine that falls from 1 to 0 is taken as its integral and the first term, which it
    does not exceed.
    """
    if not steps:
        return 0.0
    turn = math.pi * steps / of
    integral = 3 / 8 * steps + of / math.pi * (math.sin(turn) / 2 + math.sin(2 * turn) / 16)
    return learning_rate * math.sqrt(1 + integral)


def noise_deviation(contract: RunContract) -> float:
    """Standard deviation of the noise in one number of a descent, at most; 0 without DP."""
    if contract.noise_multiplier is None:
        return 0.0
    weight = contract.privacy.patients * contract.privacy.sampling
    return contract.noise_multiplier * contract.patient_bound("local-steps", rows=1) / weight


def step_bound(contract: RunContract) -> float:
    """How far the anchor moves in a round, L2 norm: as far as an honest answer says."""
    numbers = contract.privacy.directions or parameter_count(contract.anchor_network)
    return block_bound(contract, "local-steps", rows=1, length=numbers)
