import numpy as np
import pytest

from shared.bounds import block_bound, within_bounds
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


NOISED = CONTRACT.model_copy(
    update={"privacy": Privacy(epsilon=3.0, sketch=64, directions=24, patients=10, sampling=0.5)}
)


@pytest.mark.parametrize("granularity", ["cohort", "patient"])
@pytest.mark.parametrize("kind", ["gradients", "local-steps"])
def test_honest_noise_passes_and_ten_times_as_much_does_not(granularity: str, kind: str) -> None:
    contract = RunContract.model_validate(
        NOISED.model_dump() | {"granularity": granularity, "anchor": {"descent": "patient"}}
    )
    rows, length = (4, 64) if kind == "gradients" else (1, 24)
    bound = contract.patient_bound(kind, rows=rows)  # type: ignore[arg-type]
    multiplier = contract.noise_multiplier
    assert multiplier is not None
    by_patient = granularity == "patient" and kind == "gradients"
    random = np.random.default_rng(0)
    longest = np.zeros((rows, length))
    longest[0, 0] = bound
    for _ in range(200):
        noise = multiplier * bound * random.standard_normal((rows, length))
        # A block by patient, or a sum of ten, each of them as long as can be.
        noised = (longest + noise) / 0.5 if by_patient else longest + noise / (10 * 0.5)
        answer = noised[None] if by_patient else noised
        assert within_bounds(answer.astype(np.float32), contract, kind)  # type: ignore[arg-type]
        assert not within_bounds(10 * answer.astype(np.float32), contract, kind)  # type: ignore[arg-type]


def test_a_sums_bound_shrinks_with_the_root_of_its_members() -> None:
    one = block_bound(NOISED, "local-steps", rows=1, length=24)
    four = block_bound(NOISED, "local-steps", rows=1, length=24, members=4)
    assert four - 3.0 == pytest.approx((one - 3.0) / 2)
    assert block_bound(CONTRACT, "gradients", rows=4, length=9) == pytest.approx(1.0)
