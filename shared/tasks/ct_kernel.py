"""Sharp to soft reconstruction kernels of CT, with curves fitted to real pairs at the sites.

HQ is the soft image. LQ = F^-1 (T F HQ) + F^-1 (s F w): T(r) is the amplitude of the sharp kernel
over that of the soft one, s(r) the standard deviation of a coefficient of the noise that only the
sharp one lets through, w white Gaussian noise of 1 HU. r is the distance from the centre of Fourier
space, the Nyquist frequency of the axes being 1; both curves are linear between equal steps of r
and constant in the corners, where r > 1. White noise of equal values s has a standard deviation of
s HU a pixel.

T is the least-squares estimate from paired images, Re<S conj(H)> / <|H|^2> over rings of r (the H1
estimator of Bendat & Piersol, *Random Data*, ch. 6), s the power of what T leaves unexplained. Both
depend on the pixel grid: pairs are fitted on the grid the contract's images have. Filtering is
periodic: the outermost pixels see the opposite edge. The noise is taken as stationary and radially
symmetric, which real CT noise is only nearly, and as independent of HQ's own.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.tasks.noise import white
from shared.tasks.settings import NOISE_LIMIT_HU, TRANSFER_LIMIT, CtKernel


@dataclass(frozen=True)
class Response:
    """The two curves on a grid's half spectrum: (S, S // 2 + 1), noise in window units."""

    transfer: Tensor
    noise: Tensor


def response(task: CtKernel, hq: Tensor) -> Response:
    """The curves on the Fourier grid, device and type of ``hq`` (N, 1, S, S)."""
    size = hq.shape[-1]
    radius = 2 * np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    steps = np.linspace(0, 1, len(task.transfer))
    transfer = np.interp(radius, steps, task.transfer)
    noise = np.interp(radius, steps, task.noise_hu)
    noise /= task.window_high_hu - task.window_low_hu
    return Response(
        transfer=torch.from_numpy(transfer).to(hq), noise=torch.from_numpy(noise).to(hq)
    )


def observe(task: CtKernel, hq: Tensor, level: Response, *, generator: torch.Generator) -> Tensor:
    """One LQ of ``hq``, both (N, 1, S, S) in window units; differentiable in ``hq``."""
    spectrum = torch.fft.rfft2(hq) * level.transfer
    if any(task.noise_hu):
        noise = white(hq, generator=generator)
        spectrum = spectrum + torch.fft.rfft2(noise) * level.noise
    filtered: Tensor = torch.fft.irfft2(spectrum, s=hq.shape[-2:])
    return filtered


def fit_kernel(
    sharp: NDArray[np.floating], soft: NDArray[np.floating], steps: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The curves (``transfer``, ``noise_hu``) of real pairs of HU images, both (n, S, S).

    The curves have ``steps`` equal steps from 0 to the Nyquist frequency and are clipped to what
    :class:`CtKernel` admits. Images are tapered (Hann) against the jump between opposite edges and
    taken without their means, as kernels keep the mean CT number; rings one coefficient wide count
    by their number of coefficients. Raises ``ValueError`` on shapes that differ or are not square,
    on values that are not finite, on too many steps for the size, and on pairs that are the wrong
    way round.
    """
    if sharp.shape != soft.shape or sharp.ndim != 3 or sharp.shape[1] != sharp.shape[2]:
        raise ValueError(f"pairs must be two (n, S, S) of one shape: {sharp.shape}, {soft.shape}")
    count, size = sharp.shape[:2]
    if count == 0 or not 4 <= steps <= size // 4:
        raise ValueError(f"a fit at {size} px needs at least one pair, and 4 to {size // 4} steps")
    if not (np.isfinite(sharp).all() and np.isfinite(soft).all()):
        raise ValueError("pairs hold values that are not finite")
    radius = 2 * np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))
    at = np.linspace(0, 1, steps)
    hann = np.hanning(size + 1)[:size]
    taper = hann[:, None] * hann
    soft_whole = np.fft.fft2(soft.astype(np.float64))
    soft_tapered = _tapered_spectrum(soft.astype(np.float64), taper)
    fine = radius > 0.5
    if _power(_tapered_spectrum(sharp, taper))[fine].sum() < _power(soft_tapered)[fine].sum():
        raise ValueError("the sharp images have less fine detail than the soft ones: swap the two")

    def unexplained(transfer: NDArray[np.float64]) -> NDArray[np.complex128]:
        # Filtered before the taper: tapering first would leak what is strong at low frequencies.
        filtered = np.fft.ifft2(soft_whole * np.interp(radius, at, transfer)).real
        return _tapered_spectrum(sharp - filtered, taper)

    power = _ring_means(_power(soft_tapered), radius)
    transfer: NDArray[np.float64] = np.zeros(steps)
    for _ in range(2):  # the second pass corrects what the taper leaked in the first
        cross = np.mean((unexplained(transfer) * soft_tapered.conj()).real, axis=0)
        missing = np.divide(
            _ring_means(cross, radius), power, out=np.zeros_like(power), where=power > 0
        )
        transfer += _curve(missing, radius, steps)
        np.clip(transfer, 0, TRANSFER_LIMIT, out=transfer)
    variance = _ring_means(_power(unexplained(transfer)), radius) / np.sum(taper**2)
    noise = _curve(np.sqrt(variance), radius, steps).clip(0, NOISE_LIMIT_HU)
    return tuple(transfer.tolist()), tuple(noise.tolist())


def _tapered_spectrum(
    images: NDArray[np.floating], taper: NDArray[np.float64]
) -> NDArray[np.complex128]:
    """Fourier coefficients (n, S, S) of tapered images without their means."""
    means = np.sum(images * taper, axis=(1, 2), keepdims=True) / np.sum(taper)
    spectrum: NDArray[np.complex128] = np.fft.fft2((images - means) * taper)
    return spectrum


def _power(spectra: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Mean squared amplitude over n spectra (n, S, S): (S, S)."""
    mean: NDArray[np.float64] = np.mean(np.abs(spectra) ** 2, axis=0)
    return mean


def _rings(radius: NDArray[np.float64]) -> NDArray[np.int64]:
    """The ring of every coefficient (S, S), one coefficient wide, flat; 0 is the mean's own."""
    rings: NDArray[np.int64] = np.rint(radius * len(radius) / 2).astype(np.int64).ravel()
    return rings


def _ring_means(values: NDArray[np.float64], radius: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of ``values`` (S, S) over rings, from 0 to the Nyquist frequency."""
    rings = _rings(radius)
    sums = np.bincount(rings, values.ravel()) / np.bincount(rings)
    return sums[: len(radius) // 2 + 1]


def _curve(
    means: NDArray[np.float64], radius: NDArray[np.float64], steps: int
) -> NDArray[np.float64]:
    """The piecewise linear curve (steps,) nearest to ring means, all but the mean's own ring."""
    at = _ring_means(radius, radius)[1:]
    hats = np.stack([np.interp(at, np.linspace(0, 1, steps), hat) for hat in np.eye(steps)], axis=1)
    weight = np.sqrt(np.bincount(_rings(radius))[1 : len(means)])
    solution, *_ = np.linalg.lstsq(hats * weight[:, None], means[1:] * weight, rcond=None)
    return np.asarray(solution, dtype=np.float64)
