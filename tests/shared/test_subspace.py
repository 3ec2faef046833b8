import hashlib
import struct

import numpy as np
import pytest
import torch

from shared.subspace import basis_digest, is_orthonormal, lift, principal_directions, project


def rows(count: int = 6, length: int = 40, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -2, count)[:, None]
    return scales * torch.randn(count, length, generator=generator)


def test_directions_are_the_first_right_singular_vectors() -> None:
    drawn = rows()
    basis = principal_directions(drawn, count=3)
    assert is_orthonormal(basis.numpy())
    expected = torch.linalg.svd(drawn.double(), full_matrices=False).Vh[:3].float()
    cosines = (basis * expected).sum(dim=1).abs()
    torch.testing.assert_close(cosines, torch.ones(3))


def test_the_mean_is_not_taken_out() -> None:
    drawn = torch.ones(5, 30) + 0.01 * rows(5, 30)
    (first,) = principal_directions(drawn, count=1)
    assert float(first.abs().sum()) / 30**0.5 == pytest.approx(1, abs=1e-3)


def test_a_lifted_projection_is_the_nearest_point_in_the_span() -> None:
    basis = principal_directions(rows(), count=4)
    inside = torch.rand(2, 4) @ basis
    torch.testing.assert_close(lift(basis, project(basis, inside)), inside)
    other = rows(2, seed=1)
    lost = other - lift(basis, project(basis, other))
    torch.testing.assert_close(project(basis, lost), torch.zeros(2, 4), atol=1e-5, rtol=0)


def test_projection_and_lift_are_adjoint() -> None:
    basis = principal_directions(rows(), count=4)
    x, y = rows(1, seed=2)[0], torch.rand(4)
    one = project(basis, x[None])[0] @ y
    torch.testing.assert_close(one, x @ lift(basis, y[None])[0])


def test_more_directions_than_the_rows_span_are_refused() -> None:
    with pytest.raises(ValueError, match="7 directions of 6 rows of rank 6"):
        principal_directions(rows(), count=7)
    twice = torch.cat([rows(3), rows(3)])
    with pytest.raises(ValueError, match="rank 3"):
        principal_directions(twice, count=4)


def test_the_digest_is_of_the_bytes() -> None:
    basis = np.array([[1.0, 0.0], [0.0, -1.0]], np.float32)
    packed = struct.pack("<4f", 1, 0, 0, -1)
    assert basis_digest(basis) == hashlib.sha256(packed).hexdigest()
    assert basis_digest(np.asfortranarray(basis)) == basis_digest(basis)


@pytest.mark.parametrize(
    ("basis", "orthonormal"),
    [
        ([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]], True),
        ([[1.0, 0.0, 0.0], [0.0, 0.6, 0.81]], False),
        ([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]], False),
        ([[1.0, 0.0, 0.0], [0.0, np.nan, 1.0]], False),
        ([[2.0, 0.0, 0.0]], False),
    ],
)
def test_orthonormal_rows_are_told_from_others(basis: list[list[float]], orthonormal: bool) -> None:
    assert is_orthonormal(np.array(basis, np.float32)) is orthonormal
