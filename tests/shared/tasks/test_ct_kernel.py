import math

import numpy as np
import pytest
import torch

from shared.tasks import ct_kernel
from shared.tasks.settings import CtKernel

SILENT = (0.0, 0.0, 0.0, 0.0, 0.0)
RISING = (1.0, 1.1, 1.5, 2.0, 1.2)


def observed(task: CtKernel, hq: torch.Tensor, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return ct_kernel.observe(task, hq, ct_kernel.response(task, hq), generator=generator)


def wave(size: int, rows: int, columns: int) -> torch.Tensor:
    axis = torch.arange(size, dtype=torch.float64) / size
    return torch.cos(2 * math.pi * (rows * axis[:, None] + columns * axis) + 0.4)[None, None]


@pytest.mark.parametrize(
    ("rows", "columns", "amplitude"),
    [
        (4, 0, 1.1),  # a quarter of the way to Nyquist: the second step
        (0, 4, 1.1),
        (0, 6, 1.3),  # half way between two steps
        (6, 8, 1.0 * 1.5 + 0.5 * 0.5),  # radius 10 of 16: between the third and the fourth
        (15, 15, 1.2),  # a corner, beyond Nyquist
    ],
)
def test_a_wave_is_multiplied_by_the_curve_at_its_radius(
    rows: int, columns: int, amplitude: float
) -> None:
    hq = wave(32, rows, columns)
    lq = observed(CtKernel(transfer=RISING, noise_hu=SILENT), hq)
    torch.testing.assert_close(lq, amplitude * hq)


@pytest.mark.parametrize("size", [32, 33])
def test_the_filter_is_its_own_adjoint(size: int) -> None:
    task = CtKernel(transfer=RISING, noise_hu=SILENT)
    random = torch.Generator().manual_seed(size)
    x, y = torch.randn(2, 3, 1, size, size, generator=random).double()
    x.requires_grad_(True)
    left = (observed(task, x) * y).sum()
    torch.testing.assert_close(left, (x * observed(task, y)).sum())
    (derived,) = torch.autograd.grad(left, x)
    torch.testing.assert_close(derived, observed(task, y))


def test_equal_values_are_white_noise_of_that_many_hounsfield_units() -> None:
    task = CtKernel(transfer=(1.0,) * 5, noise_hu=(30.0,) * 5)
    noise = observed(task, torch.zeros(50, 1, 32, 32)) * 2000
    assert float(noise.std()) == pytest.approx(30, rel=0.01)
    assert abs(float((noise[..., 1:] * noise[..., :-1]).mean())) < 0.01 * 30**2


def test_the_noise_has_the_spectrum_of_its_curve() -> None:
    curve = (5.0, 20.0, 40.0, 30.0, 10.0)
    task = CtKernel(transfer=(1.0,) * 5, noise_hu=curve)
    noise = observed(task, torch.zeros(200, 1, 32, 32)) * 2000
    power = torch.fft.fft2(noise[:, 0]).abs().square().mean(dim=0) / 32**2
    for index, expected in enumerate(curve):  # steps of four coefficients
        for row, column in ((0, 4 * index), (4 * index, 0)):
            measured = float(power[row, column])
            assert measured == pytest.approx(expected**2, rel=5 / 200**0.5)
    assert float(power[16, 16]) == pytest.approx(curve[-1] ** 2, rel=5 / 200**0.5)


def natural(count: int, size: int, seed: int) -> torch.Tensor:
    """Random soft images with a spectrum that falls as anatomy's does, in window units."""
    random = torch.Generator().manual_seed(seed)
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) * size
    falling = torch.from_numpy((1 + radius) ** -1.5)
    spectrum = torch.fft.rfft2(torch.randn(count, 1, size, size, generator=random).double())
    image: torch.Tensor = torch.fft.irfft2(spectrum * falling, s=(size, size))
    return image / image.std() * 0.15 + 0.5


def hounsfield(image: torch.Tensor) -> np.ndarray:
    return (image[:, 0] * 2000 - 1000).numpy()


def test_a_fit_recovers_the_curves_of_synthetic_pairs() -> None:
    at = np.linspace(0, 1, 8)
    transfer, noise = tuple(1 + 2 * at**1.5), tuple(8 + 20 * at)
    task = CtKernel(transfer=transfer, noise_hu=noise)
    soft = natural(8, 96, seed=1)
    found, residual = ct_kernel.fit_kernel(
        hounsfield(observed(task, soft)), hounsfield(soft), steps=8
    )
    assert CtKernel(transfer=found, noise_hu=residual).transfer == found
    np.testing.assert_allclose(found, transfer, atol=0.12)
    np.testing.assert_allclose(found[:6], transfer[:6], atol=0.04)
    np.testing.assert_allclose(residual[1:], noise[1:], rtol=0.08)
    np.testing.assert_allclose(residual[0], noise[0], rtol=0.5)  # few coefficients are that low


def test_a_fit_finds_what_edges_that_do_not_meet_would_hide() -> None:
    at = np.linspace(0, 1, 8)
    transfer = tuple(1 + 2 * at**1.5)
    task = CtKernel(transfer=transfer, noise_hu=(0.0,) * 8)
    soft = natural(6, 192, seed=2)
    sharp = observed(task, soft)
    inner = (..., slice(32, 160), slice(32, 160))  # a part of a larger image is not periodic
    found, residual = ct_kernel.fit_kernel(
        hounsfield(sharp[inner]), hounsfield(soft[inner]), steps=8
    )
    np.testing.assert_allclose(found, transfer, rtol=0.03)
    assert max(residual) < 8  # of 300 HU of contrast


def test_identical_pairs_fit_to_nothing_at_all() -> None:
    images = hounsfield(natural(2, 32, seed=0))
    transfer, noise = ct_kernel.fit_kernel(images, images, steps=6)
    np.testing.assert_allclose(transfer, 1, atol=1e-9)
    np.testing.assert_allclose(noise, 0, atol=1e-6)


def test_a_fit_never_leaves_what_a_contract_admits() -> None:
    soft = hounsfield(natural(2, 32, seed=0))
    transfer, noise = ct_kernel.fit_kernel(-50 * soft, soft, steps=6)
    assert transfer == (0.0,) * 6
    assert max(noise) == 2000


@pytest.mark.parametrize(
    ("sharp", "soft", "steps", "message"),
    [
        ((2, 32, 32), (2, 32, 33), 8, "of one shape"),
        ((2, 32, 33), (2, 32, 33), 8, "of one shape"),
        ((32, 32), (32, 32), 8, "of one shape"),
        ((0, 32, 32), (0, 32, 32), 8, "at least one pair"),
        ((2, 32, 32), (2, 32, 32), 9, "4 to 8 steps"),
        ((2, 32, 32), (2, 32, 32), 3, "4 to 8 steps"),
    ],
)
def test_a_fit_refuses_what_is_no_set_of_pairs(
    sharp: tuple[int, ...], soft: tuple[int, ...], steps: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ct_kernel.fit_kernel(np.zeros(sharp), np.zeros(soft), steps)


def test_a_fit_refuses_pairs_the_wrong_way_round_and_values_that_are_none() -> None:
    soft = natural(2, 32, seed=0)
    sharp = hounsfield(observed(CtKernel(transfer=RISING, noise_hu=SILENT), soft))
    with pytest.raises(ValueError, match="swap the two"):
        ct_kernel.fit_kernel(hounsfield(soft), sharp, 6)
    sharp[0, 3, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        ct_kernel.fit_kernel(sharp, hounsfield(soft), 6)
