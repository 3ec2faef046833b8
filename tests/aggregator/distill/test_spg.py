import pytest
import torch

from aggregator.distill.spg import (
    RESIDUAL_BOUND,
    RESIDUAL_LEVELS,
    WARP_BOUND,
    WARP_GRID,
    Parameters,
    identity_parameters,
    personalise,
    roughness,
)


def prior() -> torch.Tensor:
    axis = torch.linspace(0, 1, 32)
    return (axis[:, None] * axis[None, :])[None, None].repeat(2, 1, 1, 1)


def wild(seed: int, *names: str) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    parameters = identity_parameters(2, 32)
    for name in parameters:
        if not names or name in names:
            parameters[name] = 10 * torch.randn(parameters[name].shape, generator=generator)
    return parameters


def test_zero_parameters_are_the_identity() -> None:
    parameters = identity_parameters(2, 32)
    torch.testing.assert_close(personalise(prior(), parameters), prior(), atol=1e-5, rtol=0)
    for value in parameters.values():
        value.requires_grad_(True)
    torch.testing.assert_close(personalise(prior(), parameters), prior(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_any_parameters_give_an_image_in_the_window(seed: int) -> None:
    images = personalise(prior(), wild(seed))
    assert 0 <= float(images.min()) <= float(images.max()) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_the_tone_curve_is_monotone_and_keeps_its_ends(seed: int) -> None:
    ramp = torch.linspace(0, 1, 32 * 32).view(1, 1, 32, 32).repeat(2, 1, 1, 1)
    toned = personalise(ramp, wild(seed, "tone")).flatten(1)
    assert bool((toned.diff(dim=1) >= -1e-6).all())
    assert float(toned[:, 0].max()) == pytest.approx(0, abs=1e-6)
    assert float(toned[:, -1].min()) == pytest.approx(1, abs=1e-5)


def test_the_residual_is_bounded() -> None:
    names = [f"residual{level}" for level in range(RESIDUAL_LEVELS)]
    flat = torch.full((2, 1, 32, 32), 0.5)
    moved = (personalise(flat, wild(0, *names)) - flat).abs()
    assert float(moved.max()) <= 2 * RESIDUAL_BOUND
    assert float(moved.max()) > RESIDUAL_BOUND / 4


def test_neighbouring_grid_nodes_cannot_cross() -> None:
    spacing = 2 / (WARP_GRID - 1)
    assert 2 * WARP_BOUND * spacing < spacing


def test_a_smooth_residual_is_cheaper_than_a_rough_one() -> None:
    fine, coarse = wild(1, "residual0"), wild(1, "residual3")
    assert float(roughness(fine, size_px=32)) > float(roughness(coarse, size_px=32)) * 2
    assert float(roughness(identity_parameters(2, 32), size_px=32)) == 0


def test_every_parameter_has_a_gradient() -> None:
    parameters = identity_parameters(2, 32)
    for value in parameters.values():
        value.requires_grad_(True)
    personalise(prior(), parameters).square().sum().backward()
    for name, value in parameters.items():
        assert value.grad is not None, name
        assert float(value.grad.abs().sum()) > 0, name
