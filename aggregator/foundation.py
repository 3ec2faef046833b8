"""What a run stands on before it asks anybody, kept in a file: trained once, and the same for ever.

A contract with ``privacy.directions`` names them by their digest, so they are computed before it is
agreed on. They follow from the rest of the contract and the public images; the free public network
that they belong to is kept with them, for the run.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from aggregator.distill.directions import Foundation, OnStep, free_network, public_directions
from aggregator.distill.prior import Prior, PriorError, build_prior
from shared.contract import RunContract
from shared.durable import write_durably
from shared.readers import ReaderError, read_images
from shared.subspace import basis_digest


class FoundationError(RuntimeError):
    """What a run stands on is missing or does not fit; the text says what to do."""


def read_prior(contract: RunContract, public: Path | None) -> Prior:
    """The contract's prior, of a folder of public images where it needs one.

    Raises ``FoundationError``.
    """
    task, images = contract.task, None
    try:
        if public is not None:
            patients = read_images(
                public,
                size_px=task.size_px,
                low=task.window[0],
                high=task.window[1],
                modality=task.modality,
            )
            images = torch.cat([torch.from_numpy(slices) for slices in patients])
        return build_prior(contract, public=images)
    except (PriorError, ReaderError) as error:
        raise FoundationError(str(error)) from None


def founded(
    contract: RunContract, *, public: Path | None, file: Path, on_step: OnStep
) -> RunContract:
    """The contract with its basis filled in; without directions, the contract as it is.

    ``file`` keeps what was computed for it, and is made where it is absent. Raises
    ``FoundationError``.
    """
    if not contract.privacy.directions:
        return contract
    if not file.exists():
        _lay(contract, public=public, file=file, on_step=on_step)
    basis = _loaded(file).basis
    digest = None if basis is None else basis_digest(basis.numpy())
    if contract.privacy.basis not in (None, digest):
        raise FoundationError(
            "privacy.basis is not the digest of this contract's directions: remove the line, "
            "launch fills it in"
        )
    filled = contract.privacy.model_copy(update={"basis": digest})
    return contract.model_copy(update={"privacy": filled})


def foundation_of(contract: RunContract, file: Path) -> Foundation | None:
    """What ``file`` keeps for a contract with directions; None for one without.

    Raises ``FoundationError`` where it is absent or another contract's.
    """
    if not contract.privacy.directions:
        return None
    kept = _loaded(file)
    if kept.basis is None or basis_digest(kept.basis.numpy()) != contract.privacy.basis:
        raise FoundationError(f"{file} does not hold the directions that the contract names")
    return kept


def _lay(contract: RunContract, *, public: Path | None, file: Path, on_step: OnStep) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prior = read_prior(contract, public)
    weights = free_network(contract, prior, device=device, on_step=on_step)
    try:
        basis, spread = public_directions(contract, prior, weights, device=device, on_step=on_step)
    except (PriorError, ValueError) as error:
        raise FoundationError(str(error)) from None
    tensors = {"public": weights, "basis": basis, "spread": spread}
    write_durably(file, save({name: one.cpu().contiguous() for name, one in tensors.items()}))


def _loaded(file: Path) -> Foundation:
    try:
        tensors = load_file(file)
        return Foundation(tensors["public"], tensors["basis"], tensors["spread"])
    except (OSError, SafetensorError, KeyError):
        raise FoundationError(f"{file} is missing or damaged: move it away, launch again") from None
