"""Procedural chest phantoms: anatomy from ellipses and tubes, tissue values from the literature.

Nobody's scan: every shape is drawn from a seeded generator. CT numbers follow the usual tables (air
-1000, lung -870 to -750, fat -100, muscle 50, blood 40 to 60 or enhanced 150, liver 60, cancellous
bone 200, cortical bone 700 HU). A *textured* phantom adds what makes real slices hard to denoise:
vessels in the lungs, organ inhomogeneity with a power-law spectrum, fat strands in muscle. A
*smooth* one leaves that out and serves as a control.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Image = NDArray[np.float32]

AIR, LUNG, FAT, MUSCLE, BLOOD, LIVER, CANCELLOUS, CORTICAL = (
    -1000.0, -840.0, -100.0, 50.0, 50.0, 60.0, 200.0, 700.0,
)  # fmt: skip
SUPERSAMPLING = 2


def chest_phantoms(*, count: int, size_px: int, seed: int, textured: bool) -> Image:
    """``count`` axial slices from the shoulders to the upper abdomen: (count, 1, S, S), HU.

    Slice i of a seed is the same whatever ``count`` is, so a larger set holds the smaller one.
    """
    slices = []
    for number in range(count):
        random = np.random.default_rng([seed, number])
        # A van der Corput sequence covers the levels evenly for every count.
        level = _van_der_corput(number)
        slices.append(
            _slice(size_px * SUPERSAMPLING, level=level, textured=textured, random=random)
        )
    stack = np.stack(slices)
    size = (count, size_px, SUPERSAMPLING, size_px, SUPERSAMPLING)
    return np.asarray(stack.reshape(size).mean(axis=(2, 4))[:, None], dtype=np.float32)


def _van_der_corput(number: int) -> float:
    value, scale = 0.0, 0.5
    number += 1
    while number:
        value += scale * (number & 1)
        number, scale = number >> 1, scale / 2
    return value


def power_law_field(size_px: int, *, exponent: float, random: np.random.Generator) -> Image:
    """A Gaussian field (S, S) of unit variance; power falls as frequency to the -``exponent``."""
    frequency = np.hypot(np.fft.fftfreq(size_px)[:, None], np.fft.rfftfreq(size_px)[None, :])
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(random.standard_normal((size_px, size_px)))
    spectrum *= frequency ** (-exponent / 2)
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, s=(size_px, size_px))
    return np.asarray(field / field.std(), dtype=np.float32)


def _slice(size: int, *, level: float, textured: bool, random: np.random.Generator) -> Image:
    """One (size, size) slice; ``level`` runs from 0 (shoulders) to 1 (liver and kidneys)."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    y, x = np.meshgrid(axis, axis, indexing="ij")  # +y is the patient's back
    wobble = [
        ndimage.gaussian_filter(random.standard_normal((size, size)), size / 12) for _ in "xy"
    ]
    x, y = (
        grid + 0.035 * field / np.abs(field).max()
        for grid, field in zip((x, y), wobble, strict=True)
    )
    width = random.uniform(0.74, 0.94) + 0.04 * (1 - level)
    depth = random.uniform(0.50, 0.74)
    x = x - random.uniform(-0.04, 0.04)
    y = y - random.uniform(-0.06, 0.06)

    def inside(cx: float, cy: float, rx: float, ry: float, power: float = 2.0) -> NDArray[np.bool_]:
        inner: NDArray[np.bool_] = (
            np.abs((x - cx) / rx) ** power + np.abs((y - cy) / ry) ** power < 1
        )
        return inner

    image = np.full((size, size), AIR, np.float32)
    body = inside(0, 0, width, depth, 2.4)
    fat = random.uniform(0.03, 0.10)
    image[body] = FAT
    wall = inside(0, 0, width - fat, depth - fat, 2.3)
    image[wall] = MUSCLE
    chest_x, chest_y = width - fat - 0.07, depth - fat - 0.06
    cavity = inside(0, -0.01, chest_x, chest_y, 2.2)

    abdomen = level > 0.8
    lungs = np.zeros_like(body)
    if abdomen:
        image[cavity] = FAT
        image[cavity & inside(-0.30, -0.06, 0.44, 0.40)] = LIVER
        image[cavity & inside(0.40, 0.06, 0.17, 0.22)] = LIVER - 8  # spleen
        for side in (-1, 1):
            image[cavity & inside(0.27 * side, 0.24, 0.10, 0.13)] = 40.0  # kidneys
        stomach = cavity & inside(0.26, -0.20, 0.22, 0.16)
        image[stomach] = 20.0
        image[stomach & (y < -0.22 + random.uniform(-0.04, 0.04))] = -950.0  # gas above fluid
    else:
        image[cavity] = MUSCLE - 10
        lung_top = 0.55 + 0.45 * math.sin(math.pi * min(level + 0.1, 0.9))
        for side in (-1, 1):
            lungs |= cavity & inside(
                side * chest_x * 0.54, 0.0, chest_x * 0.45 * lung_top**0.3, chest_y * lung_top, 2.5
            )
        mediastinum = inside(0.0, 0.02, random.uniform(0.12, 0.18), 0.6)
        heart = inside(0.10, -0.10, 0.13 + 0.30 * max(0.0, level - 0.35), 0.16 + 0.22 * level)
        if level > 0.35:
            mediastinum |= heart
        if level > 0.62:  # dome of the liver
            mediastinum |= inside(-chest_x * 0.5, -0.05, 0.9 * (level - 0.55), 0.9 * (level - 0.52))
        lungs &= ~mediastinum
        image[lungs] = LUNG + random.uniform(-40, 70)
        image[cavity & inside(0, -0.05, 0.10, 0.28) & ~lungs] = FAT + 20
        enhanced = random.choice([BLOOD, 120.0, 190.0])
        if level > 0.35:
            image[heart & cavity] = enhanced * 0.6 + 20
        for cx, cy, radius in ((0.07, 0.22, 0.055), (-0.09, -0.12, 0.05), (0.03, -0.2, 0.06)):
            image[inside(cx + random.normal(0, 0.01), cy, radius, radius)] = enhanced
        if level < 0.45:
            image[inside(0, 0.05, 0.045, 0.05)] = -980.0  # trachea
        else:
            for side in (-1, 1):
                image[inside(side * 0.08, 0.05, 0.025, 0.03)] = -960.0  # main bronchi

    spine_y = chest_y * 0.80
    image[inside(0, spine_y + 0.17, 0.16, 0.05)] = CORTICAL * 0.7  # arch and processes
    image[inside(0, spine_y, 0.125, 0.10)] = CORTICAL
    image[inside(0, spine_y, 0.105, 0.082)] = CANCELLOUS
    image[inside(0, spine_y + 0.125, 0.045, 0.035)] = 20.0  # canal
    _ribs(image, x, y, chest_x, chest_y, random)
    if level < 0.15:
        for side in (-1, 1):
            image[inside(side * (width - 0.16), 0.05, 0.085, 0.085)] = CORTICAL
            image[inside(side * (width - 0.16), 0.05, 0.06, 0.06)] = CANCELLOUS
    if textured:
        _texture(image, lungs, body, random)
    table_y = depth + random.uniform(0.03, 0.10)
    table = (np.abs(y - table_y - 0.10 * x**2) < 0.012) & (np.abs(x) < 0.7) & ~body
    image[table] = random.uniform(-600, 0)
    # The scanner's own resolution: a little over one pixel of the fine grid.
    return np.asarray(ndimage.gaussian_filter(image, random.uniform(0.7, 1.3)), np.float32)


def _ribs(
    image: Image, x: Image, y: Image, chest_x: float, chest_y: float, random: np.random.Generator
) -> None:
    """Short arcs along the chest wall: a cortical shell around cancellous bone."""
    angle = np.arctan2(y / chest_y, x / chest_x)
    radius = np.hypot(x / chest_x, y / chest_y)
    for centre in np.linspace(-math.pi, math.pi, 13)[:-1] + random.uniform(-0.2, 0.2, 12):
        along = np.abs((angle - centre + math.pi) % (2 * math.pi) - math.pi)
        long = random.uniform(0.06, 0.17)
        across = np.abs(radius - 1.045)
        image[(along < long) & (across < 0.038)] = CORTICAL * random.uniform(0.6, 1.0)
        image[(along < long * 0.8) & (across < 0.018)] = CANCELLOUS


def _texture(
    image: Image, lungs: NDArray[np.bool_], body: NDArray[np.bool_], random: np.random.Generator
) -> None:
    """Vessels, organ inhomogeneity and fat strands, in place."""
    size = image.shape[0]
    vessels = np.zeros_like(image)
    for scale, share, value in ((1.0, 0.02, 700.0), (1.8, 0.02, 800.0), (3.5, 0.012, 850.0)):
        # Ridges of a smooth field are tubes seen along their length, its peaks tubes cut across.
        field = ndimage.gaussian_filter(random.standard_normal(image.shape), scale * size / 256)
        field /= field.std()
        ridge = np.abs(field) < 0.04 * scale**0.3
        ridge &= ndimage.gaussian_filter(random.standard_normal(image.shape), 6 * size / 256) > 0.03
        peak = field > np.quantile(field, 1 - share)
        vessels = np.maximum(vessels, np.where(ridge | peak, value * random.uniform(0.5, 1.0), 0))
    deep = ndimage.gaussian_filter(lungs.astype(np.float32), 3)
    image += np.where(lungs, vessels * deep, 0)
    strands = power_law_field(size, exponent=2.2, random=random)
    soft = body & ~lungs & (image > -200) & (image < 160)
    image[soft & (strands > 1.3)] -= random.uniform(30, 110)
    fine = power_law_field(size, exponent=1.2, random=random)
    coarse = power_law_field(size, exponent=3.0, random=random)
    amplitude = np.where(lungs, 55.0, np.where(image > 160, 90.0, 16.0)) * body
    image += amplitude * (0.7 * fine + 0.7 * coarse)
