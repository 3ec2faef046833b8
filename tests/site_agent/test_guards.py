"""Guards on made-up weights; trained ones and real attacks are in tests/attacks."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shared.architectures import Network, RedCnn, Residual, UNet
from shared.contract import Anchor, Privacy, Probes, RunContract
from shared.families import layers
from shared.networks import parameter_count
from shared.trajectory import start, step_bound
from site_agent.guards import weights_violation

Rows = NDArray[np.float32]
NETWORK = Residual(depth=3, width=8)
FIRST, SECOND, LAST = layers(NETWORK)
CONTRACT = RunContract(
    name="guarded",
    student=NETWORK,
    anchor_network=NETWORK,
    anchor=Anchor(rounds=4, clip_norm=0.5, public_steps=500),
    probes=Probes(requests=2, depths=(30, 120, 400)),
)


def contract_of(network: Network, **changes: object) -> RunContract:
    return CONTRACT.model_copy(update={"student": network, "anchor_network": network, **changes})


def honest(contract: RunContract = CONTRACT, *, kind: str = "gradients", seed: int = 0) -> Rows:
    """The contract's start and, as often as there are depths, a way on from it."""
    network = "student" if kind == "gradients" else "anchor"
    begun = start(contract, kind=kind, network=network, round=1).numpy()  # type: ignore[arg-type]
    if kind == "local-steps":
        return begun[None]
    random = np.random.default_rng(seed)
    steps = random.normal(0, 5e-3, (len(contract.probes.depths), len(begun)))
    rows: Rows = (begun + steps.cumsum(0)).astype(np.float32)
    return rows


def refused(weights: Rows, contract: RunContract = CONTRACT, **asked: object) -> str | None:
    about = {"kind": "gradients", "network": "student", "round": 1, **asked}
    return weights_violation(weights, contract=contract, **about)  # type: ignore[arg-type]


def descent(weights: Rows, contract: RunContract = CONTRACT, **asked: object) -> str | None:
    return refused(weights, contract, **{"kind": "local-steps", "network": "anchor", **asked})


@pytest.mark.parametrize("network", [NETWORK, RedCnn(width=4), UNet(levels=1, width=4)])
def test_the_start_and_what_lies_near_it_pass(network: Network) -> None:
    contract = contract_of(network)
    assert refused(honest(contract), contract) is None
    assert descent(honest(contract, kind="local-steps"), contract) is None


def test_another_start_does_not() -> None:
    elsewhere = honest(CONTRACT.model_copy(update={"seed": 1}))
    assert "moved" in str(refused(elsewhere))
    assert "moved" in str(refused(honest(), round=2))  # probes start anew with each request
    anchor = honest(kind="local-steps")
    assert descent(anchor, round=2) is None  # an anchor does not


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 1e6])
def test_one_number_is_enough(value: float) -> None:
    weights = honest()
    weights[1, 100] = value
    assert refused(weights) is not None


def test_as_many_vectors_as_depths() -> None:
    assert refused(honest()) is None
    for rows in (honest()[:2], np.concatenate([honest(), honest()[-1:]]), honest()[:0]):
        assert "shape" in str(refused(rows))
    assert "shape" in str(refused(honest()[:, :-1]))
    assert "shape" in str(descent(np.concatenate([honest(kind="local-steps")] * 2)))
    assert "anchor alone" in str(descent(honest(kind="local-steps"), network="student"))


def test_depths_come_in_their_order_whatever_order_the_contract_names() -> None:
    shuffled = CONTRACT.model_copy(update={"probes": Probes(depths=(400, 30, 120))})
    weights = honest(shuffled)
    assert refused(weights, shuffled) is None
    begun = start(shuffled, kind="gradients", network="student", round=1).numpy()
    far = (begun + 3 * (weights - begun)).astype(np.float32)
    assert refused(far, shuffled) is None
    far[0] = begun + 20 * (weights[0] - begun)  # too far for 30 steps, not for 400
    assert "vector 0" in str(refused(far, shuffled))


def test_untrained_weights_are_the_initial_ones() -> None:
    contract = CONTRACT.model_copy(update={"probes": Probes(depths=(0,))})
    begun = start(contract, kind="gradients", network="student", round=1).numpy()[None]
    assert refused(begun, contract) is None
    assert "moved" in str(refused(begun + np.float32(1e-3), contract))


def test_scaled_weights() -> None:
    for factor in (0.0, 0.5, 1.5, -1.0):
        assert "moved" in str(refused(honest() * np.float32(factor)))


def kernel_of_second(weights: Rows) -> Rows:
    """A view (K, out, in * 9) into the second layer of rows (K, D)."""
    begin = FIRST.parameters
    return weights[:, begin : begin + SECOND.weights].reshape(len(weights), 8, -1)


def test_a_zeroed_filter() -> None:
    weights = honest()
    weights[:, FIRST.parameters : FIRST.parameters + 72] = 0
    assert refused(weights) is not None
    # Late in a training it would not be too far from its start any more.
    deep = CONTRACT.model_copy(update={"probes": Probes(depths=(5_000,))})
    begun = honest(deep)
    begun[:, FIRST.parameters : FIRST.parameters + 72] *= 0.2
    assert "faded" in str(refused(begun, deep))


@pytest.mark.parametrize("sign", [1, -1])
def test_filters_that_are_alike_or_opposite(sign: int) -> None:
    deep = CONTRACT.model_copy(update={"probes": Probes(depths=(5_000,))})
    weights = honest(deep)
    kernel_of_second(weights)[:, 1] = sign * 0.9 * kernel_of_second(weights)[:, 0]
    assert "alike" in str(refused(weights, deep))


def test_a_constant_layer() -> None:
    weights = honest()
    kernel_of_second(weights)[:] = 0.05
    assert refused(weights) is not None


def test_a_ladder_of_biases() -> None:
    weights = honest()
    after = FIRST.parameters + SECOND.weights
    weights[:, after : after + 8] = -np.linspace(0.2, 0.9, 8)
    assert "biases" in str(refused(weights))


def test_probes_that_differ_in_one_filter_or_hardly_at_all() -> None:
    near = CONTRACT.model_copy(update={"probes": Probes(depths=(120, 400))})
    weights = honest(near)
    assert refused(weights, near) is None
    weights[1] = weights[0]
    assert "differ" in str(refused(weights, near))
    kernel_of_second(weights)[1, 0] += 0.01
    assert "differ" in str(refused(weights, near))
    weights[1] = weights[0] + np.float32(1e-6)
    assert "differ" in str(refused(weights, near))
    # Another between the two is no way round it, nor is all that comes after the first layer.
    three = honest()
    three[2] = three[0]
    kernel_of_second(three)[2, 0] += 0.01
    assert "vectors 0 and 2" in str(refused(three))
    weights[1, FIRST.parameters :] += np.float32(0.01)
    assert "differ" in str(refused(weights, near))


def test_an_anchor_moves_no_farther_than_its_rounds_take_it() -> None:
    begun = honest(kind="local-steps")
    step = np.random.default_rng(1).normal(size=begun.shape).astype(np.float32)
    step /= np.linalg.norm(step)
    for rounds in (1, 2):
        last = (1, begun[0])
        allowed = 0.5 * rounds
        assert descent(begun + allowed * step, round=1 + rounds, last=last) is None
        assert "since round 1" in str(descent(begun + 1.01 * allowed * step, round=2, last=last))


def test_with_noise_it_may_move_by_what_the_noise_adds() -> None:
    private = CONTRACT.model_copy(
        update={
            "anchor": CONTRACT.anchor.model_copy(update={"descent": "patient"}),
            "privacy": Privacy(epsilon=8.0, patients=20),
        }
    )
    assert private.noise_multiplier is not None
    deviation = private.noise_multiplier * 0.5 / 20
    noise = np.random.default_rng(0).normal(0, deviation, parameter_count(NETWORK))
    begun = honest(private, kind="local-steps")
    noisy = (begun + noise).astype(np.float32)
    moved = float(np.linalg.norm(noise))
    assert 0.5 < moved < step_bound(private) < 2 * moved + 0.5
    assert descent(noisy, private, round=2, last=(1, begun[0])) is None
    assert descent(noisy, CONTRACT, round=2, last=(1, begun[0])) is not None
    far = (begun + 3 * noise + 0.5).astype(np.float32)
    assert descent(far, private, round=2, last=(1, begun[0])) is not None


def test_the_bound_of_a_step_is_the_clipping_norm_where_nothing_is_added() -> None:
    assert step_bound(CONTRACT) == CONTRACT.anchor.clip_norm


def test_no_contract_gives_more_than_five_thousand_steps() -> None:
    """Whatever depths, steps and rates it names."""
    wild = CONTRACT.model_copy(
        update={
            "anchor": Anchor(public_steps=100_000, learning_rate=1.0, clip_norm=1e6),
            "probes": Probes(depths=(10_000_000,)),
        }
    )
    for kind, network in (("gradients", "student"), ("local-steps", "anchor")):
        begun = start(wild, kind=kind, network=network, round=1)  # type: ignore[arg-type]
        far = begun + 2.0 * torch.sign(begun)
        assert "moved" in str(refused(far[None].numpy(), wild, kind=kind, network=network))


def test_weights_of_the_largest_networks_are_looked_at_within_seconds() -> None:
    contract = contract_of(RedCnn())
    assert refused(honest(contract), contract) is None
    assert math.prod(honest(contract).shape) > 5_000_000
