"""Slices of virtual people: thorax, abdomen and head, CT and MR.

Nobody's scan: every person is drawn from a seeded generator, with tissues of published CT numbers
and relaxation times (`tissues.py`). A person is a volume, a function of place, and slices of one
person at different heights cut the same organs, vessels, folds and textures. A *textured* phantom
holds what makes real slices hard to enhance: vessel trees, power-law parenchyma, strands of fat,
trabeculae. A *smooth* one leaves that out and serves as a control.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from aggregator.distill.abdomen import draw_abdomen
from aggregator.distill.body import Body, draw_body, draw_table, draw_wall, half_axes, tissue_look
from aggregator.distill.head import draw_brain_and_skull, draw_head, head_look
from aggregator.distill.section import Section
from aggregator.distill.skeleton import draw_skeleton
from aggregator.distill.texture import REACH_MM
from aggregator.distill.thorax import draw_thorax
from aggregator.distill.tissues import CONTRASTS, Contrast
from shared.tasks.settings import MR_WINDOW, Modality

Image = NDArray[np.float32]
Anatomy = Literal["thorax", "abdomen", "head"]

PERSONS = 16
"""Persons a set goes round before it takes a second slice of the first."""
SUPERSAMPLING = 2
LEVELS: dict[Anatomy, tuple[float, float]] = {
    "thorax": (-0.45, 1.05), "abdomen": (-1.2, 0.12), "head": (-46.0, 60.0),
}  # fmt: skip
"""Lowest and highest slice: for the trunk in lengths of the lungs above the diaphragm's dome."""


def phantom_slices(
    *,
    anatomy: Anatomy,
    modality: Modality,
    contrast: Contrast | None = None,
    count: int,
    size_px: int,
    seed: int,
    textured: bool,
) -> Image:
    """``count`` axial slices of several persons: (count, 1, S, S) in stored units.

    Stored units are HU, or for MR thousandths of the 99.5th percentile of the foreground. Without a
    ``contrast`` the persons of an MR set go round T1w, T2w and FLAIR. Slice i of a seed is the same
    whatever ``count`` is, so a larger set holds the smaller one.
    """
    slices = []
    for number in range(count):
        person, turn = number % PERSONS, number // PERSONS
        # The golden ratio spreads the heights of one person, and of one turn, evenly.
        share = (0.5 + turn * 0.618034 + person * 0.381966 * 1.7) % 1.0
        slices.append(
            person_slice(
                anatomy=anatomy,
                modality=modality,
                contrast=contrast or CONTRASTS[person % len(CONTRASTS)],
                person=(seed, person),
                share=share,
                size_px=size_px,
                textured=textured,
            )
        )
    return np.stack(slices)[:, None]


@lru_cache(maxsize=256)
def person_slice(
    *,
    anatomy: Anatomy,
    modality: Modality,
    contrast: Contrast,
    person: tuple[int, ...],
    share: float,
    size_px: int,
    textured: bool,
) -> Image:
    """One slice (S, S) of a person, ``share`` of the way up the anatomy, in stored units."""
    look = Look(modality=modality, contrast=contrast, size_px=size_px, textured=textured)
    low, high = LEVELS[anatomy]
    level = low + share * (high - low)
    image = look_at(anatomy, person, level, look)
    if modality == "MR":
        image = image * np.float32(MR_WINDOW[1] / _brightest(anatomy, person, contrast))
    image.flags.writeable = False
    return image


@dataclass(frozen=True)
class Look:
    """How a person is imaged."""

    modality: Modality
    contrast: Contrast
    size_px: int
    textured: bool


def look_at(anatomy: Anatomy, person: tuple[int, ...], level: float, look: Look) -> Image:
    """One slice (S, S): HU, or for MR relative signal on no scale yet."""
    random = np.random.default_rng([*person, 5])
    if anatomy == "head":
        section, table = _head_section(person, level, look, random), None
    else:
        body = draw_body(person)
        section = _trunk_section(body, level, look, random)
        table = body if look.modality == "CT" else None
    if look.textured:
        fine, coarse = section.power_law(6, 1.2), section.power_law(7, 3.0)
        section.image += section.grain * (0.7 * fine + 0.7 * coarse)
    if look.modality == "MR":
        # The coils' sensitivity: a smooth factor; then the magnitude.
        section.image *= 1 + 0.10 * section.noise(8, 90.0)
        np.abs(section.image, out=section.image)
    if table is not None:
        draw_table(section, table, random)
    blurred = ndimage.gaussian_filter(section.image, random.uniform(0.3, 0.9))
    shape = (look.size_px, SUPERSAMPLING, look.size_px, SUPERSAMPLING)
    return np.asarray(blurred.reshape(shape).mean(axis=(1, 3)), np.float32)


@lru_cache(maxsize=256)
def _brightest(anatomy: Anatomy, person: tuple[int, ...], contrast: Contrast) -> float:
    """99.5th percentile of the foreground over a few slices of a person, as intake scales MR."""
    look = Look(modality="MR", contrast=contrast, size_px=64, textured=False)
    low, high = LEVELS[anatomy]
    levels = [low + share * (high - low) for share in (0.3, 0.5, 0.7, 0.85)]
    volume = np.stack([look_at(anatomy, person, level, look) for level in levels])
    return float(np.percentile(volume[volume > threshold_otsu(volume)], 99.5))


def _trunk_section(body: Body, level: float, look: Look, random: np.random.Generator) -> Section:
    widest = max(half_axes(body, z)[0] for z in np.linspace(-1, 1, 9) * body.length)
    field_mm = min(2 * widest * random.uniform(0.92, 1.2), 2 * REACH_MM - 20)
    x_mm, y_mm = _axes(field_mm, look.size_px * SUPERSAMPLING, random.normal(0, (7, 12)))
    section = Section(
        x_mm=x_mm, y_mm=y_mm, z=level * body.length, pixel_mm=field_mm / len(x_mm), seed=body.seed,
        look=tissue_look(body, look.modality, look.contrast), textured=look.textured,
    )  # fmt: skip
    skin, cavity = draw_wall(section, body)
    section.paint(cavity, "fat")
    draw_abdomen(section, body, cavity)
    draw_thorax(section, body)
    draw_skeleton(section, body, cavity, skin)
    return section


def _head_section(
    person: tuple[int, ...], level: float, look: Look, random: np.random.Generator
) -> Section:
    head = draw_head(person, look.modality)
    around = 0.0 if head.stripped else 2 * (head.skull + head.scalp + 4)
    field_mm = (2 * head.half_length + around) * random.uniform(1.02, 1.22)
    x_mm, y_mm = _axes(field_mm, look.size_px * SUPERSAMPLING, random.normal(0, (2, 3)))
    section = Section(
        x_mm=x_mm, y_mm=y_mm, z=level, pixel_mm=field_mm / len(x_mm), seed=person, bend=1.6,
        look=head_look(head, look.modality, look.contrast), textured=look.textured,
    )  # fmt: skip
    draw_brain_and_skull(section, head)
    return section


def _axes(field_mm: float, count: int, offset: NDArray[np.float64]) -> tuple[Image, Image]:
    centres = (np.arange(count) + 0.5 - count / 2) * field_mm / count
    return (centres - offset[0]).astype(np.float32), (centres - offset[1]).astype(np.float32)
