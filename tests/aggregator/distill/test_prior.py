import pytest
import torch

from aggregator.distill.prior import PriorError, build_prior, covering
from shared.contract import Anchor, PriorSource, RunContract
from shared.tasks.settings import CtDenoise

TASK = CtDenoise(size_px=32, angles=60, bins=48)
ANCHOR = Anchor(crop_px=16)


def test_the_default_prior_is_procedural_and_says_so() -> None:
    prior = build_prior(RunContract(name="ct", task=TASK, anchor=ANCHOR, images=5), public=None)
    assert prior.start.shape == (5, 1, 32, 32)
    assert 0 <= float(prior.start.min()) <= float(prior.start.max()) <= 1
    assert prior.provenance["kind"] == "procedural phantom"
    assert prior.free.shape[0] > prior.start.shape[0]


def test_a_public_prior_needs_public_images() -> None:
    contract = RunContract(
        name="ct", task=TASK, anchor=ANCHOR, prior=PriorSource(kind="public"), images=4
    )
    with pytest.raises(PriorError, match="public images"):
        build_prior(contract, public=None)
    public = torch.rand(10, 1, 32, 32)
    prior = build_prior(contract, public=public)
    assert prior.start.shape == (4, 1, 32, 32)
    assert torch.equal(prior.start[0], public[0])
    assert prior.provenance["public_slices"] == 10


def test_slices_are_chosen_over_the_whole_range() -> None:
    images = torch.arange(9.0).view(9, 1, 1, 1)
    assert covering(images, 3).flatten().tolist() == [0, 4, 8]
