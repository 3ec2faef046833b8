"""A public random projection of gradients, the same matrix on every platform, never written down.

S (k, D) is an oblivious sparse embedding (Nelson and Nguyen, FOCS 2013): its rows are s = 4 blocks,
and every column has one entry of size 1/sqrt(s) in each block, of random sign. In a block the D
coordinates are shuffled and dealt to its rows in turn, so that every row is a signed sum of as many
coordinates. Columns have length one, and E |S x|^2 = |x|^2 for every x.

The matrix follows from its seed to the bit: block b draws D words of 64 bits, little-endian, from
SHAKE-256 of ``fedstill sketch SEED``, block after block. The lowest bit of word j is the sign of
coordinate j (1: minus), and the order of the words without it, ties by j, is the shuffle.

Before it, each layer is divided by a public scale, so that no layer drowns the others.
"""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.architectures import Network
from shared.families import layers
from shared.gradients import request_seed

NONZEROS = 4
"""Entries of a column, s."""
LEAST_SCALE, LARGEST_SCALE = 1e-4, 1e4
"""Between which a layer's divisor lies: the ratio of its gradients' size to that of all."""


class Sketch:
    """The linear map S diag(1/scale) from a gradient (D,) to (k,), differentiable."""

    def __init__(self, network: Network, *, size: int, seed: int, scales: Tensor) -> None:
        counts = torch.tensor([layer.parameters for layer in layers(network)])
        length, blocks = int(counts.sum()), min(NONZEROS, size)
        divisors = scales.double().cpu().repeat_interleave(counts)
        words = _words(seed, blocks * length).reshape(blocks, length)
        self.seed, self.scales = seed, scales
        self._sizes = [len(part) for part in np.array_split(np.arange(size), blocks)]
        orders, factors = [], []
        for drawn, rows in zip(words, self._sizes, strict=True):
            order = np.argsort(drawn >> np.uint64(1), kind="stable")
            signs = 1.0 - 2.0 * (drawn & np.uint64(1)).astype(np.float64)
            factor = torch.from_numpy(signs) / divisors / blocks**0.5
            missing = -length % rows
            orders.append(np.concatenate([order, np.zeros(missing, np.int64)]))
            # What fills the last row up is multiplied by zero.
            factors.append(torch.cat([factor[torch.from_numpy(order)], factor.new_zeros(missing)]))
        device = scales.device
        self._order = torch.from_numpy(np.concatenate(orders)).to(device)
        self._factor = torch.cat(factors).float().to(device)
        self._lengths = [len(order) for order in orders]

    def __call__(self, gradient: Tensor) -> Tensor:
        """S applied to (D,): (k,)."""
        dealt = torch.split(gradient[self._order] * self._factor, self._lengths)
        parts = [
            part.view(-1, rows).sum(dim=0) for part, rows in zip(dealt, self._sizes, strict=True)
        ]
        return torch.cat(parts)


def sketch_seed(contract_digest: str, *, round: int, probe: int) -> int:
    """The seed of one probe's sketch: public, and another for every probe."""
    return request_seed(contract_digest, "sketch", round, probe)


def layer_scales(network: Network, gradient: Tensor) -> Tensor:
    """Divisors (L,) that give every layer's coordinates the same mean square, in float32.

    ``gradient`` (D,) is a public one; its total norm stays what it is. A layer that hardly has one
    is raised by no more than the limits allow.
    """
    parts = torch.split(gradient.double(), [layer.parameters for layer in layers(network)])
    sizes = torch.stack([part.square().mean().sqrt() for part in parts])
    whole = gradient.double().square().mean().sqrt()
    if not bool(whole > 0):
        return torch.ones(len(parts), device=gradient.device)
    # A decade is kept on either side for the correction of the norm.
    scales = (sizes / whole).clamp(10 * LEAST_SCALE, LARGEST_SCALE / 10)
    norms = torch.stack([part.norm() for part in parts])
    kept = (norms / scales).norm() / norms.norm()
    limited: Tensor = (scales * kept).clamp(LEAST_SCALE, LARGEST_SCALE)
    return limited.float()


def are_scales(scales: NDArray[np.float32], network: Network, *, probes: int) -> bool:
    """Whether ``scales`` are (K, L) divisors of an honest size."""
    if scales.shape != (probes, len(layers(network))):
        return False
    # NaN fails both comparisons.
    return bool(((scales >= LEAST_SCALE) & (scales <= LARGEST_SCALE)).all())


def _words(seed: int, count: int) -> NDArray[np.uint64]:
    stream = hashlib.shake_256(f"fedstill sketch {seed}".encode()).digest(8 * count)
    return np.frombuffer(stream, "<u8").astype(np.uint64)
