"""Where honest weights start, and how far they get: what an aggregator keeps to and a site checks.

No probe and no anchor comes from nowhere. Initial weights follow from the contract alone; from
there Adam goes some 1e-3 a step (:mod:`shared.training`), and an anchor moves by a mean of clipped
descents a round.
"""

import math

from torch import Tensor

from shared.contract import Kind, Name, RunContract
from shared.gradients import request_seed
from shared.networks import initial_weights, parameter_count
from shared.training import LEARNING_RATE

NOISE_DEVIATIONS = 4.0
"""Above its mean, in units of a coordinate's deviation, that a noise vector's norm hardly gets."""


def start_seed(contract: RunContract, *, kind: Kind, round: int) -> int:
    """Seed of the initial weights: of the anchor for the whole run, of probes for each request."""
    if kind == "local-steps":
        return request_seed(contract.foundation(), "public")
    return request_seed(contract.digest(), "probe", round)


def start(contract: RunContract, *, kind: Kind, network: Name, round: int) -> Tensor:
    """The initial weights (D,) that all weights of a request were trained from, on the CPU."""
    seed = start_seed(contract, kind=kind, round=round)
    return initial_weights(contract.network(network), seed=seed)


def stride(steps: int, *, of: int, learning_rate: float = LEARNING_RATE) -> float:
    """Root sum square of the learning rates of the first ``steps`` of a training ``of`` so many.

    What training moves a coordinate by grows with it: successive steps go hardly the same way.
    """
    rates = (learning_rate * (1 + math.cos(math.pi * step / of)) / 2 for step in range(steps))
    return math.sqrt(sum(rate**2 for rate in rates))


def noise_deviation(contract: RunContract) -> float:
    """Standard deviation of the noise in one number of a descent, at most; 0 without DP."""
    if contract.noise_multiplier is None:
        return 0.0
    bound = contract.patient_bound("local-steps", rows=1)
    return (
        contract.noise_multiplier * bound / (contract.privacy.patients * contract.privacy.sampling)
    )


def step_bound(contract: RunContract) -> float:
    """How far the anchor moves in a round, L2 norm.

    A mean of clipped descents is no longer than one of them. With DP a public number stands for
    that of patients, who may be twice as many, and there is noise.
    """
    deviation = noise_deviation(contract)
    if not deviation:
        return contract.anchor.clip_norm
    numbers = contract.privacy.directions or parameter_count(contract.anchor_network)
    noise = deviation * (math.sqrt(numbers) + NOISE_DEVIATIONS)
    return 2 * contract.anchor.clip_norm + noise
