import pytest
import torch

from aggregator.distill.directions import free_network, public_directions
from aggregator.distill.prior import Prior, PriorError
from shared.architectures import Residual
from shared.contract import Anchor, Member, Privacy, RunContract
from shared.gradients import patient_parts
from shared.networks import parameter_count
from shared.subspace import is_orthonormal, lift, project
from shared.tasks.settings import CtDenoise

CPU = torch.device("cpu")
CONTRACT = RunContract(
    name="ct",
    task=CtDenoise(size_px=32, angles=60, bins=48, pixel_mm=9.0),
    images=2,
    student=Residual(depth=2, width=4),
    anchor_network=Residual(depth=2, width=4),
    anchor=Anchor(rounds=1, local_steps=5, public_steps=20, crop_px=16, descent="patient"),
    privacy=Privacy(directions=4),
)


def prior(count: int = 8) -> Prior:
    generator = torch.Generator().manual_seed(0)
    free = torch.nn.functional.interpolate(
        torch.rand(count, 1, 8, 8, generator=generator), size=(32, 32), mode="bilinear"
    )
    return Prior(free[:2], free, {})


def silent(*_: object) -> None:
    pass


def network(contract: RunContract = CONTRACT) -> torch.Tensor:
    return free_network(contract, prior(), device=CPU, on_step=silent)


def directions(contract: RunContract = CONTRACT, images: int = 8) -> torch.Tensor:
    basis, spread = public_directions(
        contract, prior(images), network(contract), device=CPU, on_step=silent
    )
    assert spread.shape == (len(basis),)
    assert float(spread.min()) >= 0
    return basis


def test_directions_are_orthonormal_and_hold_most_of_an_unseen_public_descent() -> None:
    basis = directions()
    assert basis.shape == (4, parameter_count(CONTRACT.anchor_network))
    assert is_orthonormal(basis.numpy())
    (unseen,) = patient_parts(
        contract=CONTRACT,
        kind="local-steps",
        network="anchor",
        weights=network()[None],
        patients=[prior(9).free[8:]],
        seed=77,
        device=CPU,
    )
    kept = lift(basis, project(basis, unseen)).norm() / unseen.norm()
    # Four random directions would hold sqrt(4 / 77) of it.
    assert float(kept) > 0.6


def test_they_follow_from_what_the_coordinator_wrote_alone() -> None:
    filled = CONTRACT.model_copy(
        update={
            "granularity": "federation",
            "privacy": Privacy(directions=4),
        }
    )
    member = Member(name="a", signing_key="0" * 64)
    launched = filled.model_copy(
        update={
            "privacy": Privacy(directions=4, basis="1" * 64),
            "members": (member,),
        }
    )
    assert torch.equal(directions(filled), directions(launched))
    assert not torch.equal(network(), network(CONTRACT.model_copy(update={"seed": 1})))


def test_the_spread_says_how_long_public_descents_are_along_each_direction() -> None:
    _, spread = public_directions(CONTRACT, prior(), network(), device=CPU, on_step=silent)
    # Of principal directions, the first ones hold most.
    torch.testing.assert_close(spread, spread.sort(descending=True).values)
    fewer, same = public_directions(
        CONTRACT.model_copy(update={"privacy": Privacy(directions=2)}),
        prior(),
        network(),
        device=CPU,
        on_step=silent,
    )
    assert fewer.shape[0] == 2
    assert same.shape == (2,)


def test_fewer_public_images_than_directions_are_refused() -> None:
    many = CONTRACT.model_copy(update={"privacy": Privacy(directions=40)})
    with pytest.raises(PriorError, match="directions 40 need as many public images, there are 18"):
        directions(many, images=3)
