"""Parallel-beam projection, its exact adjoint, and filtered back-projection.

The projector A is a sparse matrix: every pixel's centre is projected on the detector and its area
shared between the two nearest bins (pixel-driven, linear interpolation; Kak & Slaney, *Principles
of Computerized Tomographic Imaging*, ch. 3). A and its transpose are both kept, so that the adjoint
is exact and both are differentiable any number of times.
"""

import functools
import math
import warnings
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """Square image of ``size_px`` pixels of edge 1, ``angles`` views over 180 degrees."""

    size_px: int
    angles: int
    bins: int


class _Linear(torch.autograd.Function):
    """y = matrix @ x with the transpose as its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:
        ctx.matrices = (matrix, transpose)
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        matrix, transpose = ctx.matrices
        applied = _apply(gradient.contiguous(), transpose, matrix)
        return applied, None, None


_apply: Any = _Linear.apply


class ParallelBeam:
    """The operators of one geometry on one device."""

    def __init__(self, geometry: Geometry, *, device: torch.device) -> None:
        self.geometry = geometry
        matrix = _system_matrix(geometry)
        self._project = _csr(matrix, device)
        self._backproject = _csr(matrix.T.tocsr(), device)
        self._filter = _hann_ramp(geometry.bins).to(device)

    def project(self, image: Tensor) -> Tensor:
        """Line integrals of (N, 1, S, S), in units of pixel edges: (N, angles, bins)."""
        batch, size = image.shape[0], self.geometry.size_px
        columns = image.reshape(batch, size * size).T.contiguous()
        out = _apply(columns, self._project, self._backproject)
        return cast(Tensor, out.T.reshape(batch, self.geometry.angles, self.geometry.bins))

    def backproject(self, sinogram: Tensor) -> Tensor:
        """The exact adjoint of :meth:`project`: (N, angles, bins) to (N, 1, S, S)."""
        batch, size = sinogram.shape[0], self.geometry.size_px
        columns = sinogram.reshape(batch, -1).T.contiguous()
        out = _apply(columns, self._backproject, self._project)
        return cast(Tensor, out.T.reshape(batch, 1, size, size))

    def reconstruct(self, sinogram: Tensor) -> Tensor:
        """Filtered back-projection with a Hann-windowed ramp: (N, angles, bins) to (N, 1, S, S).

        The ramp is Kak & Slaney eq. 3.29 (band-limited, space domain).
        """
        filtered = sinogram @ self._filter
        return self.backproject(filtered) * (math.pi / self.geometry.angles)


@functools.lru_cache(maxsize=4)
def parallel_beam(geometry: Geometry, device: torch.device) -> ParallelBeam:
    """The operators of a geometry, built once a process (about a second and 100 MB at 128²)."""
    return ParallelBeam(geometry, device=device)


def _system_matrix(geometry: Geometry) -> sparse.csr_matrix:
    size, bins = geometry.size_px, geometry.bins
    centre = (np.arange(size) - (size - 1) / 2).astype(np.float64)
    y, x = np.meshgrid(centre, centre, indexing="ij")
    across, down = x.ravel(), y.ravel()
    pixels = np.arange(size * size, dtype=np.int32)
    rows, columns, values = [], [], []
    for view in range(geometry.angles):
        angle = math.pi * view / geometry.angles
        position = across * math.cos(angle) + down * math.sin(angle) + (bins - 1) / 2
        lower = np.floor(position).astype(np.int32)
        fraction = position - lower
        for bin_index, weight in ((lower, 1 - fraction), (lower + 1, fraction)):
            inside = (bin_index >= 0) & (bin_index < bins) & (weight > 0)
            rows.append(view * bins + bin_index[inside])
            columns.append(pixels[inside])
            values.append(weight[inside].astype(np.float32))
    return sparse.csr_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
        shape=(geometry.angles * bins, size * size),
        dtype=np.float32,
    )


def _csr(matrix: sparse.csr_matrix, device: torch.device) -> Tensor:
    with warnings.catch_warnings():
        # torch announces once a process that sparse CSR support is young.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support", category=UserWarning)
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int32)),
            torch.from_numpy(matrix.indices.astype(np.int32)),
            torch.from_numpy(matrix.data),
            size=matrix.shape,
            device=device,
            check_invariants=False,
        )


def _hann_ramp(bins: int) -> Tensor:
    """The ramp filter as a symmetric (bins, bins) Toeplitz matrix, Hann-windowed in frequency."""
    length = 2 * bins
    kernel: NDArray[np.float64] = np.zeros(length)
    kernel[0] = 0.25
    odd = np.arange(1, bins, 2)
    kernel[odd] = kernel[length - odd] = -1.0 / (math.pi * odd) ** 2
    frequency = np.fft.fftfreq(length)
    spectrum = np.fft.fft(kernel).real * (0.5 + 0.5 * np.cos(2 * math.pi * frequency))
    kernel = np.fft.ifft(spectrum).real
    index = np.abs(np.arange(bins)[:, None] - np.arange(bins)[None, :])
    return torch.from_numpy(kernel[index].astype(np.float32))
