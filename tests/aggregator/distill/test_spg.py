import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline
from torch import Tensor
from torch.nn import functional

from aggregator.distill.spg import (
    BAND_EDGES,
    STEEPEST,
    Parameters,
    bands,
    displacement,
    identity_parameters,
    personalise,
    personalise_at_price,
    residual,
    residual_bounds,
    residual_level,
)
from shared.contract import Spg

SPG = Spg()


def prior() -> Tensor:
    axis = torch.linspace(0, 1, 32)
    return (axis[:, None] * axis[None, :])[None, None].repeat(2, 1, 1, 1)


def wild(seed: int, *names: str, spg: Spg = SPG, size: int = 32, images: int = 2) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    parameters = identity_parameters(images, size, spg)
    for name in parameters:
        if not names or name in names:
            parameters[name] = 10 * torch.randn(parameters[name].shape, generator=generator)
    return parameters


def jacobian(field: Tensor) -> Tensor:
    """Determinants (N, S-2, S-2) of the map p + u(p), by central differences; u is (N, 2, S, S)."""
    along_x = (field[:, :, 1:-1, 2:] - field[:, :, 1:-1, :-2]) / 2
    along_y = (field[:, :, 2:, 1:-1] - field[:, :, :-2, 1:-1]) / 2
    return (1 + along_x[:, 0]) * (1 + along_y[:, 1]) - along_y[:, 0] * along_x[:, 1]


def exact_jacobian(coefficients: Tensor, *, spacing: float, size: int, fine: int) -> np.ndarray:
    """The same by scipy's derivatives of the splines, at ``fine`` x ``fine`` points a pixel."""
    nodes = coefficients.shape[-1]
    knots = (np.arange(nodes + 4) - 3) * spacing
    at = (np.arange(size * fine) + 0.5) / fine
    values = BSpline(knots, np.eye(nodes), 3)
    basis, slopes = values(at), values.derivative()(at)
    u = coefficients.double().numpy()
    x_by_x, x_by_y = basis @ u[0] @ slopes.T, slopes @ u[0] @ basis.T
    y_by_x, y_by_y = basis @ u[1] @ slopes.T, slopes @ u[1] @ basis.T
    return (1 + x_by_x) * (1 + y_by_y) - x_by_y * y_by_x


def extremes(shape: torch.Size, kind: str, seed: int) -> Tensor:
    """Raw warp parameters at which a displacement is as steep as it gets."""
    if kind == "random":
        return 10 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    rows, columns = torch.meshgrid(torch.arange(shape[2]), torch.arange(shape[3]), indexing="ij")
    along = {"checks": rows + columns, "columns": columns, "rows": rows, "pairs": columns // 2}
    signs = 1.0 - 2.0 * (along[kind] % 2)
    return 1e3 * signs.expand(shape)


def test_zero_parameters_are_the_identity() -> None:
    parameters = identity_parameters(2, 32, SPG)
    torch.testing.assert_close(personalise(prior(), parameters, SPG), prior(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_any_parameters_give_an_image_in_the_window(seed: int) -> None:
    images = personalise(prior(), wild(seed), SPG)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    kind=st.sampled_from(["random", "checks", "columns", "rows", "pairs"]),
    warp_px=st.floats(0.1, 64),
    size=st.sampled_from([32, 48, 128]),
)
def test_no_parameters_fold_the_warp(seed: int, kind: str, warp_px: float, size: int) -> None:
    spg = Spg(warp_px=warp_px)
    parameters = identity_parameters(1, size, spg)
    parameters["warp"] = extremes(parameters["warp"].shape, kind, seed)
    field = displacement(parameters, spg, size_px=size)
    assert float(jacobian(field).min()) >= 1 - 2 * STEEPEST - 1e-4
    assert float(field.square().sum(1).sqrt().max()) <= warp_px * (1 + 1e-5)


@pytest.mark.parametrize("kind", ["random", "columns", "rows", "pairs"])
def test_nothing_folds_between_the_pixels_either(kind: str) -> None:
    size, spacing = 64, 6 * 2**0.5 / STEEPEST  # what 6 px want, above a sixth of 64
    parameters = identity_parameters(1, size, SPG)
    parameters["warp"] = extremes(parameters["warp"].shape, kind, 0)
    coefficients = 6 / 2**0.5 * torch.tanh(parameters["warp"][0])
    fine = exact_jacobian(coefficients, spacing=spacing, size=size, fine=4)
    assert fine.min() > 1 - 2 * STEEPEST - 1e-6
    assert fine.max() > 1.2, "a warp that does something"
    # The map's own finite differences agree with the formula, to their order.
    pixels = jacobian(displacement(parameters, SPG, size_px=size))[0].numpy()
    centres = exact_jacobian(coefficients, spacing=spacing, size=size, fine=1)[1:-1, 1:-1]
    assert np.abs(pixels - centres).max() < 0.05


def test_an_unbounded_warp_folds_and_is_seen_to() -> None:
    """The detector's control: the same splines with eight times the bound."""
    parameters = identity_parameters(1, 64, SPG)
    parameters["warp"] = extremes(parameters["warp"].shape, "pairs", 0)
    field = displacement(parameters, SPG, size_px=64)
    assert float(jacobian(field).min()) > 0
    assert float(jacobian(8 * field).min()) < 0
    fine = exact_jacobian(
        8 * 6 / 2**0.5 * torch.tanh(parameters["warp"][0]),
        spacing=6 * 2**0.5 / STEEPEST,
        size=64,
        fine=4,
    )
    assert fine.min() < 0


def test_the_warp_moves_the_image_by_the_displacement() -> None:
    parameters = identity_parameters(1, 32, SPG)
    parameters["warp"][:, 0] = 0.5  # equal coefficients are a constant shift to the right
    field = displacement(parameters, SPG, size_px=32)
    shift = 6 / 2**0.5 * np.tanh(0.5)
    torch.testing.assert_close(field[:, 0], torch.full((1, 32, 32), shift))
    ramp = torch.linspace(0.1, 0.9, 32).expand(1, 1, 32, 32)
    moved = personalise(ramp, parameters, SPG)
    expected = ramp + shift * 0.8 / 31
    torch.testing.assert_close(moved[..., 2:28], expected[..., 2:28], atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_the_tone_curve_is_monotone_and_keeps_its_ends(seed: int) -> None:
    ramp = torch.linspace(0, 1, 32 * 32).view(1, 1, 32, 32).repeat(2, 1, 1, 1)
    toned = personalise(ramp, wild(seed, "tone"), SPG).flatten(1)
    assert bool((toned.diff(dim=1) >= -1e-6).all())
    assert float(toned[:, 0].max()) == pytest.approx(0, abs=1e-6)
    assert float(toned[:, -1].min()) == pytest.approx(1, abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**20), levels=st.integers(1, 6), bound=st.floats(1e-3, 1))
def test_the_residual_is_at_most_the_sum_of_its_levels_bounds(
    seed: int, levels: int, bound: float
) -> None:
    spg = Spg(residual_levels=levels, residual_bound=bound)
    bounds = residual_bounds(spg)
    assert bounds[-1] == pytest.approx(bound)
    assert sum(bounds) == pytest.approx(bound * (2 - 2.0 ** (1 - levels)))
    parameters = wild(seed, spg=spg)
    assert len([name for name in parameters if name.startswith("residual")]) == levels
    assert float(residual(parameters, spg, size_px=32).abs().max()) <= sum(bounds) * (1 + 1e-5)
    full = {name: torch.full_like(value, 1e3) for name, value in parameters.items()}
    torch.testing.assert_close(
        residual(full, spg, size_px=32), torch.full((2, 1, 32, 32), sum(bounds))
    )


def power_beyond(image: Tensor, cycles_a_pixel: float) -> float:
    """Share of the power of (N, 1, S, S) beyond a frequency along either axis."""
    size = image.shape[-1]
    hann = torch.hann_window(size)
    power = torch.fft.fft2(image * hann * hann[:, None]).abs().square().mean((0, 1))
    frequency = torch.fft.fftfreq(size).abs()
    high = torch.maximum(frequency[:, None], frequency[None, :]) >= cycles_a_pixel
    return float(power[high].sum() / power.sum())


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_level_has_no_power_beyond_its_bandwidth(level: int) -> None:
    spacing = 2**level
    parameters = wild(level, size=128, images=16)
    layer = residual_level(parameters, SPG, level, size_px=128)
    beyond = 0.75 / spacing
    assert power_beyond(layer, beyond) < 1e-3
    coarse = parameters[f"residual{level}"][..., : 128 // spacing, : 128 // spacing].tanh()
    blocks = coarse.repeat_interleave(spacing, -1).repeat_interleave(spacing, -2)
    assert power_beyond(blocks, beyond) > 0.05, "nearest neighbours, the control, have"


def test_a_smooth_residual_is_cheaper_than_a_rough_one() -> None:
    def price(parameters: Parameters) -> float:
        return float(personalise_at_price(prior(), parameters, SPG)[1])

    # The fine level moves an eighth as much and is dearer all the same.
    assert price(wild(1, "residual0")) > price(wild(1, "residual3"))
    assert price(identity_parameters(2, 32, SPG)) == 0
    change = residual(wild(2), SPG, size_px=32).double().numpy()
    expected = (np.diff(change, axis=-1) ** 2).mean() + (np.diff(change, axis=-2) ** 2).mean()
    assert price(wild(2)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("part", ["tone", "warp", "residual"])
def test_a_part_switched_off_has_no_parameters_and_changes_nothing(part: str) -> None:
    without = SPG.model_copy(update={part: False})
    parameters = wild(0, spg=without)
    assert not [name for name in parameters if name.startswith(part)]
    everything = wild(0) | parameters
    neutral = {
        name: torch.zeros_like(value) if name.startswith(part) else value
        for name, value in everything.items()
    }
    torch.testing.assert_close(
        personalise(prior(), parameters, without),
        personalise(prior(), neutral, SPG),
        atol=1e-5,
        rtol=0,
    )


def test_with_every_part_off_the_images_are_the_prior() -> None:
    nothing = Spg(tone=False, spectrum=False, warp=False, residual=False)
    parameters = identity_parameters(2, 32, nothing)
    assert parameters == {}
    images, price = personalise_at_price(prior(), parameters, nothing)
    assert torch.equal(images, prior())
    assert float(price) == 0


def test_the_bands_and_the_coarsest_mean_sum_to_the_image() -> None:
    image = torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    coarsest = image - torch.stack(bands(image)).sum(dim=0)
    widest = BAND_EDGES[-1]
    padded = functional.pad(image, (widest // 2,) * 4, mode="replicate")
    means = functional.avg_pool2d(padded, widest, stride=1)
    torch.testing.assert_close(coarsest, means, atol=1e-6, rtol=0)


@pytest.mark.parametrize("cycles", [2, 8, 20])
def test_a_gain_raises_a_waves_amplitude_as_its_band_responds(cycles: int) -> None:
    size, gain = 128, 0.7
    spg = Spg(tone=False, warp=False, residual=False)
    phase = 2 * torch.pi * cycles * torch.arange(size) / size
    image = (0.5 + 0.05 * torch.cos(phase)).expand(1, 1, size, size).contiguous()
    raw = torch.zeros(1, len(BAND_EDGES))
    raw[0, 0] = 3 * math.atanh(gain / 3)
    changed = personalise(image, {"spectrum": raw}, spg)[0, 0, 64]
    # A box mean of edge 3 leaves (1 + 2 cos w) / 3 of a wave; the finest band has the rest.
    response = 1 - (1 + 2 * math.cos(2 * math.pi * cycles / size)) / 3
    amplitude = 2 * torch.fft.rfft(changed - 0.5)[cycles].abs() / size
    assert float(amplitude) == pytest.approx(0.05 * (1 + gain * response), rel=2e-2)


def test_every_parameter_has_a_gradient() -> None:
    parameters = identity_parameters(2, 32, SPG)
    for value in parameters.values():
        value.requires_grad_(True)
    personalise(prior(), parameters, SPG).square().sum().backward()
    for name, value in parameters.items():
        assert value.grad is not None, name
        assert float(value.grad.abs().sum()) > 0, name
