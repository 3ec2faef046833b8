import math

import pytest
import torch

from shared.architectures import Residual
from shared.contract import Anchor, Probes, RunContract
from shared.networks import initial_weights
from shared.trajectory import start, start_seed, step_bound, stride

CONTRACT = RunContract(
    name="ct", student=Residual(depth=2, width=4), anchor=Anchor(clip_norm=2.0), probes=Probes()
)


@pytest.mark.parametrize(
    ("steps", "of"), [(1, 1), (3, 3), (30, 400), (120, 400), (400, 400), (1, 9)]
)
def test_a_stride_is_that_of_the_cosine_schedule_or_a_little_more(steps: int, of: int) -> None:
    parameter = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.SGD([parameter], lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=of)
    rates = []
    for _ in range(steps):
        rates.append(float(schedule.get_last_lr()[0]))
        optimiser.step()
        schedule.step()
    exact = math.sqrt(sum(rate**2 for rate in rates))
    # The first term is counted twice at most.
    assert exact <= stride(steps, of=of) <= math.hypot(exact, 2e-3) + 1e-9


def test_a_stride_of_no_step_is_none_and_one_of_any_number_costs_nothing() -> None:
    assert stride(0, of=0) == stride(0, of=400) == 0.0
    assert stride(10**9, of=10**9) == pytest.approx(2e-3 * math.sqrt(3 / 8 * 1e9))
    assert stride(7, of=9, learning_rate=1.0) == pytest.approx(stride(7, of=9) / 2e-3)


def test_probes_start_anew_at_every_request_the_anchor_once() -> None:
    seeds = {start_seed(CONTRACT, kind="gradients", round=round) for round in (5, 6)}
    assert len(seeds) == 2
    assert len({start_seed(CONTRACT, kind="local-steps", round=round) for round in (1, 2)}) == 1
    other = CONTRACT.model_copy(update={"seed": 1})
    for kind in ("gradients", "local-steps"):
        assert start_seed(CONTRACT, kind=kind, round=1) != start_seed(other, kind=kind, round=1)  # type: ignore[arg-type]


def test_what_launch_fills_in_does_not_move_the_anchors_start() -> None:
    """The basis is made of the network that was trained from there."""
    bare = CONTRACT.model_copy(
        update={"privacy": CONTRACT.privacy.model_copy(update={"directions": 4})}
    )
    filled = bare.model_copy(
        update={"privacy": bare.privacy.model_copy(update={"basis": "0" * 64})}
    )
    assert bare.digest() != filled.digest()
    assert start_seed(bare, kind="local-steps", round=1) == start_seed(
        filled, kind="local-steps", round=1
    )


def test_a_start_is_the_named_networks() -> None:
    seed = start_seed(CONTRACT, kind="gradients", round=3)
    for network in ("student", "anchor"):
        torch.testing.assert_close(
            start(CONTRACT, kind="gradients", network=network, round=3),  # type: ignore[arg-type]
            initial_weights(CONTRACT.network(network), seed=seed),  # type: ignore[arg-type]
        )


def test_a_step_is_bounded_by_the_clipping_norm() -> None:
    assert step_bound(CONTRACT) == 2.0
