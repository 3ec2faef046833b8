"""No weights of honest trainings are refused: probes of all networks, anchors of federations."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from aggregator.distill.anchor import averaged, descend
from aggregator.distill.phantom import person_slice
from shared.architectures import DnCnn, Edsr, Network, RedCnn, Residual, UNet
from shared.contract import Anchor, Probes, RunContract
from shared.gradients import local_descent
from shared.tasks.settings import CtDenoise
from shared.training import fit_pairs, noisy_pool
from shared.trajectory import start, step_bound
from site_agent.guards import weights_violation

CPU = torch.device("cpu")
SIZE = 48
NOISY = CtDenoise(size_px=SIZE, angles=48, bins=72)
"""With its noise: where there is none to remove, a network's units die."""


def images(person: int) -> Tensor:
    """Two slices of a person in window units, (2, 1, S, S)."""
    slices = [
        person_slice(
            anatomy="thorax",
            modality="CT",
            contrast="T1w",
            person=(person, 0),
            share=share,
            size_px=SIZE,
            textured=True,
        )
        for share in (0.35, 0.5)
    ]
    return torch.from_numpy((np.stack(slices)[:, None].clip(-1000, 1000) + 1000) / 2000).float()


@pytest.fixture(scope="module")
def patients() -> list[Tensor]:
    return [images(100 + number) for number in range(6)]


def contract_of(network: Network, *, depths: tuple[int, ...] = (30,), seed: int = 0) -> RunContract:
    return RunContract(
        name="honest",
        seed=seed,
        task=NOISY,
        student=network,
        anchor_network=network,
        probes=Probes(depths=depths),
        anchor=Anchor(rounds=5, crop_px=16, batch=2, public_steps=120, local_steps=40),
    )


SMALL: tuple[Network, ...] = (
    Residual(depth=2, width=4),
    Residual(depth=3, width=8),
    Residual(),
    DnCnn(depth=4, width=8),
    RedCnn(width=4),
    RedCnn(width=8),
    Edsr(blocks=1, width=4),
    Edsr(blocks=2, width=8),
    UNet(levels=1, width=4),
    UNet(levels=2, width=8),
)
DEFAULTS: tuple[Network, ...] = (Residual(depth=6, width=32), UNet(), DnCnn(), Edsr(), RedCnn())


def trained(network: Network, depths: tuple[int, ...], seed: int, hq: Tensor) -> str | None:
    """The guard's word on the checkpoints of an honest training."""
    contract = contract_of(network, depths=depths, seed=seed)
    weights = fit_pairs(
        lq=noisy_pool(NOISY, hq, draws=2, seed=seed),
        hq=hq,
        network=network,
        steps=max(depths),
        seed=seed,
        device=CPU,
        start=start(contract, kind="gradients", network="student", round=1),
        batch=2,
        crop_px=16,
        checkpoints=depths,
    )
    return weights_violation(
        weights.numpy(), contract=contract, kind="gradients", network="student", round=1
    )


@pytest.mark.slow
def test_no_checkpoint_of_an_honest_training_is_refused(patients: list[Tensor]) -> None:
    hq, looked_at = torch.cat(patients), 0
    for network, seed in itertools.product(SMALL, (0, 1)):
        depths = (0, 1, 2, 5, 10, 20, 40, 80, 160)
        assert trained(network, depths, seed, hq) is None, (network, seed)
        looked_at += len(depths)
    for network in DEFAULTS:
        assert trained(network, (0, 1, 4, 8), 0, hq) is None, network
        looked_at += 4
    assert looked_at >= 200


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", [Residual(depth=2, width=4), Residual(), UNet(levels=1, width=4)]
)
def test_no_anchor_of_an_honest_federation_is_refused(
    patients: list[Tensor], network: Network
) -> None:
    contract = contract_of(network)
    hq = torch.cat([images(500 + number) for number in range(4)])
    weights = fit_pairs(
        lq=noisy_pool(NOISY, hq, draws=2, seed=1),
        hq=hq,
        network=network,
        steps=contract.anchor.public_steps,
        seed=1,
        device=CPU,
        start=start(contract, kind="local-steps", network="anchor", round=1),
        batch=2,
        crop_px=16,
    )
    last = None
    for round in range(1, 6):
        violation = weights_violation(
            weights[None].numpy(),
            contract=contract,
            kind="local-steps",
            network="anchor",
            round=round,
            last=last,
        )
        assert violation is None, round
        last = (round, weights.numpy())
        descents = [
            local_descent(
                contract=contract,
                network="anchor",
                weights=weights,
                patients=cohort,
                seed=round,
                device=CPU,
            )[None]
            for cohort in (patients[:3], patients[3:])
        ]
        mean = averaged(descents, patients=[5, 5])
        weights = descend(weights, mean[0], at_most=step_bound(contract))
