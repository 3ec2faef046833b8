import numpy as np
import pytest
import torch

from shared.architectures import Residual
from shared.contract import Kind, Privacy, RunContract
from shared.families import layers
from shared.networks import parameter_count
from shared.reduction import Reduction, ReductionError, reduction_of
from shared.sketch import Sketch, sketch_seed
from shared.subspace import basis_digest, principal_directions

NETWORK = Residual(depth=2, width=4)
LENGTH = parameter_count(NETWORK)
BASIS = principal_directions(torch.randn(5, LENGTH), count=3).numpy()
SCALES = np.full((2, len(layers(NETWORK))), 0.5, np.float32)


def contract(**privacy: object) -> RunContract:
    return RunContract(
        name="ct",
        student=NETWORK,
        anchor_network=NETWORK,
        privacy=Privacy.model_validate(privacy),
    )


BOTH = contract(directions=3, basis=basis_digest(BASIS), sketch=8)


def reduction(agreed: RunContract, kind: Kind, **arrays: np.ndarray) -> Reduction:
    return reduction_of(
        agreed,
        {"weights": np.zeros((2, LENGTH), np.float32), **arrays},
        kind=kind,
        network="anchor",
        round=4,
        probes=2,
        device=torch.device("cpu"),
    )


def test_without_a_reduction_rows_stay_whole() -> None:
    rows = torch.randn(2, LENGTH)
    assert torch.equal(reduction(contract(), "gradients")(rows), rows)
    only_directions = contract(directions=3)
    assert torch.equal(reduction(only_directions, "gradients")(rows), rows)


def test_descents_become_coordinates_along_the_contracts_directions() -> None:
    rows = torch.randn(1, LENGTH)
    expected = rows.numpy() @ BASIS.T
    reduced = reduction(BOTH, "local-steps", basis=BASIS)(rows)
    np.testing.assert_allclose(reduced.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_each_probes_gradient_is_sketched_with_its_own_seed() -> None:
    rows = torch.randn(2, LENGTH)
    reduced = reduction(BOTH, "gradients", scales=SCALES)(rows)
    for probe in (0, 1):
        seed = sketch_seed(BOTH.digest(), round=4, probe=probe)
        own = Sketch(NETWORK, size=8, seed=seed, scales=torch.from_numpy(SCALES[probe]))
        assert torch.equal(reduced[probe], own(rows[probe]))


def test_what_is_not_finite_stays_so() -> None:
    rows = torch.zeros(2, LENGTH)
    rows[:, 3] = torch.inf
    assert not torch.isfinite(reduction(BOTH, "gradients", scales=SCALES)(rows)).all()
    assert not torch.isfinite(reduction(BOTH, "local-steps", basis=BASIS)(rows)).all()


LONGER = np.concatenate([BASIS, np.zeros((3, 1), np.float32)], axis=1)
SKEWED = BASIS + np.float32(0.01)


@pytest.mark.parametrize(
    ("agreed", "kind", "arrays", "said"),
    [
        (contract(), "gradients", {"scales": SCALES}, "no reduction"),
        (contract(), "local-steps", {"basis": BASIS}, "no reduction"),
        (BOTH, "gradients", {}, "need {'scales'}"),
        (BOTH, "gradients", {"basis": BASIS}, "need {'scales'}"),
        (BOTH, "local-steps", {}, "need {'basis'}"),
        (BOTH, "local-steps", {"basis": BASIS, "scales": SCALES}, "need {'basis'}"),
        (BOTH, "gradients", {"scales": SCALES[:1]}, "positive divisor"),
        (BOTH, "gradients", {"scales": -SCALES}, "positive divisor"),
        (BOTH, "local-steps", {"basis": BASIS[:2]}, "shape"),
        (BOTH, "local-steps", {"basis": LONGER}, "shape"),
        (BOTH, "local-steps", {"basis": -BASIS}, "another basis"),
        (contract(directions=3), "local-steps", {"basis": BASIS}, "does not say"),
        (
            contract(directions=3, basis=basis_digest(SKEWED)),
            "local-steps",
            {"basis": SKEWED},
            "not orthonormal",
        ),
    ],
)
def test_arrays_that_are_not_the_contracts_are_refused(
    agreed: RunContract, kind: Kind, arrays: dict[str, np.ndarray], said: str
) -> None:
    with pytest.raises(ReductionError, match=said):
        reduction(agreed, kind, **arrays)
