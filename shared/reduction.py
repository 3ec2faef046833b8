"""What a request's answers are reduced to: whole, along public directions, or sketched.

The same linear map at a site, of every patient's part, and at the aggregator, of the distilled
set's own gradients.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.contract import Kind, Name, RunContract
from shared.networks import parameter_count
from shared.sketch import Sketch, are_scales, sketch_seed
from shared.subspace import basis_digest, is_orthonormal, project

Reduction = Callable[[Tensor], Tensor]
"""From rows (K, D), one a probe, to (K, R)."""


class ReductionError(ValueError):
    """A basis or scales that are not those of the contract; the text says what is wrong."""


def reduction_of(
    contract: RunContract,
    arrays: Mapping[str, NDArray[np.float32]],
    *,
    kind: Kind,
    network: Name,
    round: int,
    probes: int,
    device: torch.device,
) -> Reduction:
    """The reduction that a request of so many ``probes`` asks for, with its ``arrays``.

    Raises ``ReductionError`` where ``basis`` or ``scales`` is missing, not asked for, or wrong.
    """
    needed = {"gradients": "scales", "local-steps": "basis"}[kind]
    wanted = {needed} if contract.reduced_to(kind) else set()
    if set(arrays) - {"weights"} != wanted:
        raise ReductionError(f"{kind} need {wanted or 'no reduction'}: other arrays came with them")
    if not wanted:
        return _whole
    if kind == "local-steps":
        basis = arrays["basis"]
        _refuse_bad_basis(contract, basis, length=parameter_count(contract.network(network)))
        directions = torch.from_numpy(np.array(basis)).to(device)
        return lambda rows: project(directions, rows)
    scales = arrays["scales"]
    if not are_scales(scales, contract.network(network), probes=probes):
        raise ReductionError("scales are not a positive divisor a layer and probe")
    sketches = sketches_of(
        contract, torch.from_numpy(np.array(scales)).to(device), network=network, round=round
    )
    return lambda rows: sketched(sketches, rows)


def sketches_of(
    contract: RunContract, scales: Tensor, *, network: Name, round: int
) -> list[Sketch]:
    """The sketch of every probe of a request, whose ``scales`` are (K, L)."""
    digest = contract.digest()
    return [
        Sketch(
            contract.network(network),
            size=contract.privacy.sketch,
            seed=sketch_seed(digest, round=round, probe=probe),
            scales=row,
        )
        for probe, row in enumerate(scales)
    ]


def sketched(sketches: Sequence[Sketch], rows: Tensor) -> Tensor:
    """``rows`` (K, D), each through its own sketch: (K, k)."""
    return torch.stack([sketch(row) for sketch, row in zip(sketches, rows, strict=True)])


def _whole(rows: Tensor) -> Tensor:
    return rows


def _refuse_bad_basis(contract: RunContract, basis: NDArray[np.float32], *, length: int) -> None:
    if contract.privacy.basis is None:
        raise ReductionError("the contract does not say which basis its directions are")
    if basis.shape != (contract.privacy.directions, length):
        raise ReductionError(f"a basis of shape {basis.shape}")
    if basis_digest(basis) != contract.privacy.basis:
        raise ReductionError("another basis than the contract's")
    if not is_orthonormal(basis):
        raise ReductionError("the contract's basis is not orthonormal")
