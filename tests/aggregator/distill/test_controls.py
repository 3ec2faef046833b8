import pytest
import torch

from aggregator.distill.controls import noise_targets, prior_warped, public_anchored
from aggregator.distill.distiller import Distiller
from aggregator.distill.prior import Prior
from shared.architectures import Residual
from shared.contract import Anchor, Probes, RunContract
from shared.gradients import cohort_gradients, request_seed
from shared.networks import parameter_count
from shared.tasks.degradation import degrade
from shared.tasks.settings import CtDenoise
from shared.training import enhance_symmetric

CONTRACT = RunContract(
    name="ct",
    task=CtDenoise(size_px=32, angles=60, bins=48, pixel_mm=9.0),
    images=2,
    student=Residual(depth=2, width=4),
    anchor_network=Residual(depth=2, width=4),
    probes=Probes(requests=2, depths=(3, 6), steps=3, clip_norm=10.0),
    anchor=Anchor(rounds=1, local_steps=3, public_steps=10, crop_px=16),
)


def prior() -> Prior:
    generator = torch.Generator().manual_seed(0)
    free = torch.nn.functional.interpolate(
        torch.rand(4, 1, 8, 8, generator=generator), size=(32, 32), mode="bicubic"
    ).clamp(0, 1)
    return Prior(free[:2], free, {})


def prepared() -> Distiller:
    distiller = Distiller(CONTRACT, prior(), device=torch.device("cpu"))
    distiller.prepare()
    return distiller


def after_hospital_rounds() -> Distiller:
    """One whose every state that a hospital can touch has been touched."""
    distiller = prepared()
    generator = torch.Generator().manual_seed(7)
    while not distiller.finished:
        _, weights = distiller.ask()
        distiller.absorb([0.01 * torch.randn(weights.shape, generator=generator)], patients=[5])
    return distiller


def test_a_warped_prior_is_neither_the_prior_nor_another_image() -> None:
    start = prior().start
    warped = prior_warped(CONTRACT, prior(), seed=1)
    assert torch.equal(warped, prior_warped(CONTRACT, prior(), seed=1))
    assert not torch.equal(warped, prior_warped(CONTRACT, prior(), seed=2))
    assert 0.01 < float((warped - start).abs().mean()) < 0.2
    assert 0 <= float(warped.min()) <= float(warped.max()) <= 1


def test_public_pairs_have_the_targets_of_the_network_before_any_hospital() -> None:
    early, late = prepared(), after_hospital_rounds()
    lq, hq = public_anchored(late)
    for one, other in zip(public_anchored(early), (lq, hq), strict=True):
        assert torch.equal(one, other)
    assert early.anchor_weights is not None
    torch.testing.assert_close(
        hq, enhance_symmetric(CONTRACT.anchor_network, early.anchor_weights, lq)
    )
    seed = request_seed(CONTRACT.digest(), "release")
    torch.testing.assert_close(lq, degrade(CONTRACT.task, prior().start, seed=seed))


def test_noise_targets_owe_nothing_to_a_hospital() -> None:
    early, late = noise_targets(prepared()), noise_targets(after_hospital_rounds())
    for one, other in zip(early.pairs(), late.pairs(), strict=True):
        assert torch.equal(one, other)
    assert early.anchor_weights is early.public_weights
    assert not torch.equal(early.images, early.start), "it is matched all the same"


def test_noise_targets_have_the_schedule_and_the_lengths_of_the_sets_own_gradients() -> None:
    null = noise_targets(prepared())
    assert null.finished
    assert [entry.round for entry in null.bank.entries] == [2, 2, 3, 3]
    entry = null.bank.entries[0]
    own = cohort_gradients(
        contract=CONTRACT,
        network="student",
        weights=entry.weights[None],
        patients=[prior().start],
        seed=request_seed(CONTRACT.digest(), "noise", 2),
        device=torch.device("cpu"),
    )[0]
    target = entry.targets[0]
    assert float(target.norm()) == pytest.approx(float(own.norm()), rel=1e-4)
    cosine = torch.nn.functional.cosine_similarity(own, target, dim=0)
    assert abs(float(cosine)) < 4 / parameter_count(CONTRACT.student) ** 0.5


def test_controls_need_the_public_network() -> None:
    with pytest.raises(RuntimeError, match="prepare"):
        public_anchored(Distiller(CONTRACT, prior(), device=torch.device("cpu")))
