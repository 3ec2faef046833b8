"""Public principal directions: a few numbers that say most of where a descent goes.

The rows of a basis B (k, D) are orthonormal. A descent x (D,) is sent as B x, and lifted back as
B^T (B x), its nearest point in their span. Noise of differential privacy then falls on k numbers in
place of D. The directions come from public images (``aggregator/distill/directions.py``).
"""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TOLERANCE = 1e-4
"""Largest entry of B B^T - I in a basis that counts as orthonormal: float32 rounds."""


def basis_digest(basis: NDArray[np.float32]) -> str:
    """SHA-256 (hex) of a basis (k, D): its rows one after the other, little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(basis, "<f4").tobytes()).hexdigest()


def is_orthonormal(basis: NDArray[np.float32]) -> bool:
    """Whether the rows of (k, D) have length one and are at right angles to each other."""
    if not bool(np.isfinite(basis).all()):
        return False
    wide = basis.astype(np.float64)
    return bool(np.abs(wide @ wide.T - np.eye(len(basis))).max() <= TOLERANCE)


def project(basis: Tensor, rows: Tensor) -> Tensor:
    """Coordinates (K, k) of ``rows`` (K, D) along the directions of ``basis`` (k, D)."""
    return rows @ basis.T


def lift(basis: Tensor, coordinates: Tensor) -> Tensor:
    """The rows (K, D) whose ``coordinates`` (K, k) along ``basis`` (k, D) are given."""
    return coordinates.to(basis) @ basis


def principal_directions(rows: Tensor, *, count: int) -> Tensor:
    """The ``count`` orthonormal directions (count, D) that hold most of ``rows`` (P, D).

    The first right singular vectors, not centred: the rows' mean is a direction too. Raises
    ``ValueError`` on rows of a lower rank.
    """
    wide = rows.double()
    # P is small: the eigenvectors of the Gram matrix (P, P) carry those of (D, D).
    powers, vectors = torch.linalg.eigh(wide @ wide.T)
    powers, vectors = powers.flip(0), vectors.flip(1)
    rank = int((powers > 1e-12 * powers[0].clamp_min(1e-300)).sum())
    if rank < count:
        raise ValueError(f"{count} directions of {len(rows)} rows of rank {rank}")
    spanned = vectors[:, :count].T @ wide / powers[:count].sqrt()[:, None]
    # Once more against each other, as the smallest of them lost digits.
    columns: Tensor = torch.linalg.qr(spanned.T).Q
    return columns.T.float().contiguous()
