"""How like two images are, whatever is compared aligned in the same way.

An image is moved against the other by whole pixels, up to ``REACH`` along each axis and round the
borders (which show air), to where their squared difference is least; PSNR and SSIM are of that
position. NCC, the correlation coefficient, is the largest over the same positions. Nulls and
reconstructions go through the same search, so that neither gains by it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

REACH = 8
"""Largest displacement, pixels."""
AT_ONCE = 128
"""Pairs whose maps are held at a time."""

_SIGMA, _RADIUS = 1.5, 5
_C1, _C2 = 0.01**2, 0.03**2


@dataclass(frozen=True)
class Likeness:
    """Figures of every image with every reference, each (A, B)."""

    psnr_db: Tensor
    ssim: Tensor
    ncc: Tensor

    def of_groups(self, groups: Sequence[Tensor]) -> "Likeness":
        """The best over each group of references, such as one patient's slices: (A, groups)."""
        return self._each(
            lambda values: torch.stack([values[:, one].amax(dim=1) for one in groups], dim=1)
        )

    def best(self) -> "Likeness":
        """The best over the images: (B,) each."""
        return self._each(lambda values: values.amax(dim=0))

    def at(self, places: Sequence[int]) -> "Likeness":
        """Those of some references, of figures (B,)."""
        return self._each(lambda values: values[list(places)])

    def where(self, known: Tensor) -> "Likeness":
        """Figures (B,) that are ``known``; elsewhere less than any."""
        return self._each(lambda values: values.where(known, -torch.inf))

    @staticmethod
    def best_of(several: Sequence["Likeness"]) -> "Likeness":
        """The best of several, each (B,)."""
        return _together(several, lambda values: torch.stack(values).amax(dim=0))

    @staticmethod
    def joined(several: Sequence["Likeness"]) -> "Likeness":
        """Those of several, each (B,), one after the other."""
        return _together(several, torch.cat)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Likeness":
        return Likeness(change(self.psnr_db), change(self.ssim), change(self.ncc))


def _together(several: Sequence[Likeness], change: Callable[[list[Tensor]], Tensor]) -> Likeness:
    return Likeness(
        change([one.psnr_db for one in several]),
        change([one.ssim for one in several]),
        change([one.ncc for one in several]),
    )


def likeness(images: Tensor, references: Tensor) -> Likeness:
    """Of ``images`` (A, 1, S, S) with ``references`` (B, 1, S, S), in window units, peak 1."""
    rows = [_with_all(image, references) for image in images]
    return Likeness(*(torch.stack(column) for column in zip(*rows, strict=True)))


def to_patients(images: Tensor, patients: Sequence[Tensor]) -> Likeness:
    """The best over the slices (n_i, 1, S, S) of each patient: (A, patients)."""
    whose = torch.cat([torch.full((len(one),), number) for number, one in enumerate(patients)])
    groups = [(whose == number).nonzero().flatten() for number in range(len(patients))]
    return likeness(images, torch.cat(list(patients))).of_groups(groups)


def _with_all(image: Tensor, references: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    psnr, ssim, ncc = [], [], []
    for some in torch.split(references, AT_ONCE):
        moves, products = _best_moves(image, some)
        energy = image.square().mean() + some.square().mean(dim=(-3, -2, -1))
        psnr.append(-10 * torch.log10((energy - 2 * products).clamp_min(1e-12)))
        ssim.append(_similarity(image, moves, some))
        deviation = image.std(unbiased=False) * some.std(dim=(-3, -2, -1), unbiased=False)
        centred = products - image.mean() * some.mean(dim=(-3, -2, -1))
        ncc.append(centred / deviation.clamp_min(1e-12))
    return torch.cat(psnr), torch.cat(ssim), torch.cat(ncc)


def _best_moves(image: Tensor, references: Tensor) -> tuple[list[tuple[int, int]], Tensor]:
    """Where to move ``image`` (1, S, S) for each of (B, 1, S, S), and the mean products (B,) there.

    Moving round the borders changes neither mean nor energy, so the least squared difference and
    the largest correlation are both at the largest product.
    """
    size, reach = image.shape[-1], min(REACH, image.shape[-1] // 2 - 1)
    spectrum = torch.fft.rfft2(references.double()) * torch.fft.rfft2(image.double()).conj()
    products = torch.fft.irfft2(spectrum, s=(size, size))[:, 0] / size**2
    offsets = torch.arange(-reach, reach + 1, device=image.device)
    near = products[:, offsets % size][:, :, offsets % size].flatten(1)
    best, place = near.max(dim=1)
    width = len(offsets)
    return [(int(p) // width - reach, int(p) % width - reach) for p in place], best.float()


def _similarity(image: Tensor, moves: list[tuple[int, int]], references: Tensor) -> Tensor:
    """SSIM (B,) of ``image`` (1, S, S), so moved, with (B, 1, S, S): shared.images.ssim, faster."""
    moved, x, xx = (
        torch.stack([one.roll(move, dims=(-2, -1)) for move in moves])
        for one in (image, _round_blurred(image), _round_blurred(image.square()))
    )
    x, xx = (one[..., _RADIUS:-_RADIUS, _RADIUS:-_RADIUS] for one in (x, xx))
    y, yy, xy = (_blurred(one) for one in (references, references.square(), moved * references))
    covariance, variances = xy - x * y, xx + yy - x.square() - y.square()
    values = (2 * x * y + _C1) * (2 * covariance + _C2)
    values = values / ((x.square() + y.square() + _C1) * (variances + _C2))
    return values.mean(dim=(-3, -2, -1))


def _round_blurred(image: Tensor) -> Tensor:
    """Gaussian means of (1, S, S) round the borders: (1, S, S)."""
    return _blurred(pad(image[None], (_RADIUS,) * 4, mode="circular"))[0]


def _blurred(maps: Tensor) -> Tensor:
    """Gaussian means of (B, 1, S, S) where the whole window lies inside: (B, 1, S - 10, S - 10)."""
    rows = _window(maps.shape[-1]).to(maps)
    return rows @ maps @ rows.T


@lru_cache(maxsize=4)
def _window(size: int) -> Tensor:
    """The Gaussian window at each place that holds it: (S - 10, S). Small products are fast."""
    offsets = torch.arange(size)[None] - torch.arange(_RADIUS, size - _RADIUS)[:, None]
    weights = torch.exp(-0.5 * (offsets / _SIGMA).square()) * (offsets.abs() <= _RADIUS)
    return weights / weights.sum(dim=1, keepdim=True)
