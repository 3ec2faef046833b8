import numpy as np
import pytest

from shared.bounds import within_bounds
from shared.contract import Anchor, Privacy, Probes, RunContract

CONTRACT = RunContract(name="ct", probes=Probes(clip_norm=0.5), anchor=Anchor(clip_norm=3.0))
SKETCHED = CONTRACT.model_copy(update={"privacy": Privacy(sketch=2, directions=2)})


def values(*norms: float) -> np.ndarray:
    """(K, 2): rows of such norms."""
    return np.array([[0.6 * norm, 0.8 * norm] for norm in norms], np.float32)


@pytest.mark.parametrize(
    ("contract", "norms", "honest"),
    [
        (CONTRACT, (0.5, 0.5, 0.5, 0.5), True),
        (CONTRACT, (0.51, 0.0, 0.0, 0.0), False),
        (SKETCHED, (1.0, 0.0, 0.0, 0.0), True),  # four rows share a bound of 0.5 sqrt(4)
        (SKETCHED, (0.5, 0.5, 0.5, 0.5), True),
        (SKETCHED, (0.8, 0.8, 0.0, 0.0), False),
    ],
)
def test_whole_rows_are_bounded_one_by_one_and_reduced_ones_together(
    contract: RunContract, norms: tuple[float, ...], honest: bool
) -> None:
    assert within_bounds(values(*norms), contract, "gradients") is honest
    blocks = np.stack([values(0, 0, 0, 0), values(*norms)])
    assert within_bounds(blocks, contract, "gradients") is honest, "patient by patient"


@pytest.mark.parametrize("contract", [CONTRACT, SKETCHED])
def test_a_descent_has_the_anchors_bound(contract: RunContract) -> None:
    assert within_bounds(values(3.0), contract, "local-steps")
    assert not within_bounds(values(3.01), contract, "local-steps")
