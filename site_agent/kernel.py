"""A degradation from real pairs: two reconstruction kernels of the same acquisitions.

Slices are paired by where they lie in the patient, never by a name or a number: the same frame of
reference and orientation, and the image's corners at the same places (``intake.pairing``).
What comes out are two curves over spatial frequency and the number of pairs behind them. Files are
parsed by readers, processes within limits, as the index has them read.
"""

import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.tasks.ct_kernel import fit_kernel
from shared.tasks.settings import CtKernel
from site_agent.intake.dicom import DicomSlice
from site_agent.intake.folder import IntakeError, ct_slices
from site_agent.intake.geometry import evenly_spaced
from site_agent.intake.pairing import CRITERIA, Pair, agreement, same_places
from site_agent.intake.pool import ReaderError, ReaderPool
from site_agent.intake.selection import hounsfield_of
from site_agent.intake.windowing import windowed

MAX_PAIRS = 256
"""Pairs a fit is made of; of more, evenly spaced ones."""

_LOW_HU, _HIGH_HU = -1024.0, 3071.0  # a scanner's range: the noise in air is not to be cut off


class KernelFitError(ValueError):
    """Folders that no curve can be fitted to; the text names the fix."""


def kernel_task(*, sharp: Path, soft: Path, steps: int, size_px: int) -> CtKernel:
    """Fits the task ``ct-kernel`` to pairs of a sharp and a soft reconstruction.

    ``steps`` is the number of points of each curve, ``size_px`` the edge of the contract's images,
    to whose grid the slices are resampled as those of a cohort are. Raises ``KernelFitError`` or
    ``IntakeError``.
    """
    key = secrets.token_bytes(32)  # one for both folders: what is one place is told by hashes
    try:
        with ReaderPool(readers=2) as pool:
            sides = (ct_slices(folder, key=key, pool=pool) for folder in (sharp, soft))
            pairs = _pairs(*sides)
            pairs = [pairs[n] for n in evenly_spaced(len(pairs), at_most=MAX_PAIRS)]
            sharp_hu, soft_hu = _hounsfield(pairs, size_px, pool)
    except ReaderError as error:
        raise IntakeError(str(error)) from None
    try:
        transfer, noise_hu = fit_kernel(sharp_hu, soft_hu, steps)
    except ValueError as error:
        raise KernelFitError(f"the pairs cannot be fitted: {error}") from None
    return CtKernel(
        size_px=size_px,
        transfer=tuple(round(value, 4) for value in transfer),
        noise_hu=tuple(round(value, 2) for value in noise_hu),
        fitted_pairs=len(soft_hu),
    )


def as_toml(task: CtKernel) -> str:
    """The contract's ``[task]`` table."""
    return "\n".join(
        [
            "[task]",
            f'name = "{task.name}"',
            f"size_px = {task.size_px}",
            f"transfer = {list(task.transfer)}",
            f"noise_hu = {list(task.noise_hu)}",
            f"fitted_pairs = {task.fitted_pairs}",
        ]
    )


def _pairs(sharp: Sequence[DicomSlice], soft: Sequence[DicomSlice]) -> list[Pair]:
    """One slice of each where both lie; places with several of a kind are left out."""
    pairs, ambiguous = same_places(sharp, soft)
    if pairs:
        return pairs
    if ambiguous:
        raise KernelFitError(
            "every position holds several slices of one kind: "
            "give folders that hold one series of each acquisition"
        )
    lacking = CRITERIA[max(agreement(a, b) for a in sharp for b in soft)]
    raise KernelFitError(
        f"none of {len(sharp)} sharp slices lies where one of {len(soft)} soft ones does: there is "
        f"no pair of {lacking}; give two reconstructions of the same acquisition and field of view"
    )


def _hounsfield(pairs: Sequence[Pair], size_px: int, pool: ReaderPool) -> NDArray[np.float32]:
    """The sharp and the soft images in HU, (2, n, S, S), of the pairs that can be decoded."""
    pixels = hounsfield_of([one for pair in pairs for one in pair], pool=pool)
    read = []
    for pair in pairs:
        sharp, soft = next(pixels), next(pixels)
        # A slice that cannot be decoded takes its partner with it.
        if sharp is not None and soft is not None:
            read.append([(sharp, pair[0].spacing_mm), (soft, pair[1].spacing_mm)])
    if not read:
        raise KernelFitError("the pixels of no pair can be decoded: export them uncompressed")
    sides = [
        windowed(side, size_px=size_px, low=_LOW_HU, high=_HIGH_HU)[:, 0]
        for side in zip(*read, strict=True)
    ]
    return np.float32(_LOW_HU) + np.stack(sides) * np.float32(_HIGH_HU - _LOW_HU)
