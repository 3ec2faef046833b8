from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aggregator import foundation
from aggregator.foundation import FoundationError, foundation_of, founded, read_prior
from shared.architectures import Residual
from shared.contract import Anchor, PriorSource, Privacy, RunContract
from shared.subspace import basis_digest, is_orthonormal
from shared.tasks.settings import CtDenoise

CONTRACT = RunContract(
    name="ct",
    task=CtDenoise(size_px=32, angles=60, bins=48, pixel_mm=9.0),
    images=2,
    student=Residual(depth=2, width=4),
    anchor_network=Residual(depth=2, width=4),
    anchor=Anchor(rounds=1, local_steps=2, public_steps=4, crop_px=16, descent="patient"),
    privacy=Privacy(directions=3),
)


def fill(file: Path, contract: RunContract = CONTRACT) -> RunContract:
    return founded(contract, public=None, file=file, on_step=lambda *_: None)


def test_a_contract_without_directions_stays_as_it_is(tmp_path: Path) -> None:
    bare = CONTRACT.model_copy(update={"privacy": Privacy()})
    assert fill(tmp_path / "file", bare) == bare
    assert foundation_of(bare, tmp_path / "file") is None
    assert not list(tmp_path.iterdir())


def test_the_basis_is_computed_once_and_its_digest_filled_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kept" / "one.safetensors"
    filled = fill(file)
    basis = load_file(file)["basis"]
    assert is_orthonormal(basis.numpy())
    assert filled.privacy.basis == basis_digest(basis.numpy())
    assert filled.foundation() == CONTRACT.digest()
    assert filled.digest() != CONTRACT.digest()
    monkeypatch.setattr(foundation, "free_network", None)
    assert fill(file) == filled
    assert fill(file, filled) == filled
    kept = foundation_of(filled, file)
    assert kept is not None
    assert kept.basis is not None
    assert torch.equal(kept.basis, basis)
    assert torch.equal(kept.public_weights, load_file(file)["public"])


def test_what_does_not_fit_is_refused_with_the_fix(tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    filled = fill(file)
    other = CONTRACT.model_copy(update={"privacy": Privacy(directions=3, basis="0" * 64)})
    with pytest.raises(FoundationError, match="remove the line"):
        fill(file, other)
    with pytest.raises(FoundationError, match="does not hold"):
        foundation_of(other, file)
    save_file({"public": torch.zeros(3)}, file)
    with pytest.raises(FoundationError, match="damaged"):
        foundation_of(filled, file)
    with pytest.raises(FoundationError, match="missing"):
        foundation_of(filled, tmp_path / "absent")


def test_a_prior_that_is_not_there_is_refused() -> None:
    with pytest.raises(FoundationError, match="public images"):
        read_prior(CONTRACT.model_copy(update={"prior": PriorSource(kind="public")}), None)
