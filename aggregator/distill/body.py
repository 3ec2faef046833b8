"""A virtual adult's trunk: what is drawn once a person, and the wall around chest and abdomen.

Heights are in mm above the dome of the right hemidiaphragm; the lungs' apex is at ``length``.
Lengths are those of adult cross-sectional anatomy; nobody was measured for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from aggregator.distill.section import Section, ellipse_distance, smooth_union
from aggregator.distill.texture import Field
from aggregator.distill.tissues import SEQUENCES, Contrast, appearance
from shared.tasks.settings import Modality

Phase = Literal["plain", "arterial", "portal"]

# Height / length -> share of the half width and half depth at the chest.
_HEIGHTS = (-1.25, -1.0, -0.55, 0.0, 0.5, 0.8, 0.95, 1.1, 1.25)
_WIDTH_ARMS_UP = (1.03, 0.99, 0.93, 0.97, 1.0, 1.02, 1.0, 0.86, 0.62)
_WIDTH_ARMS_DOWN = (1.03, 0.99, 0.93, 0.97, 1.0, 1.06, 1.20, 1.22, 0.90)
_DEPTH = (0.90, 0.90, 0.94, 1.0, 1.0, 0.93, 0.82, 0.72, 0.60)
_CAGE_HEIGHTS = (-1.2, -0.6, -0.2, 0.2, 0.5, 0.75, 0.9, 1.0, 1.1)
_CAGE_WIDTH = (0.93, 0.92, 0.98, 1.0, 0.96, 0.78, 0.58, 0.36, 0.22)
_CAGE_DEPTH = (0.86, 0.92, 1.0, 1.0, 0.98, 0.86, 0.70, 0.50, 0.30)


@dataclass(frozen=True)
class Body:
    """What makes one trunk differ from another; lengths in mm."""

    seed: tuple[int, ...]
    half_width: float
    half_depth: float
    fat: float
    length: float
    scale: float
    breasts: float
    arms_up: bool
    phase: Phase
    marrow: float  # share of normal mineral in cancellous bone
    heart: float
    left_dome: float
    table: int


def draw_body(seed: tuple[int, ...]) -> Body:
    """A random adult."""
    random = np.random.default_rng([*seed, 1])
    heavy = float(random.beta(1.6, 1.8))
    scale = float(np.clip(random.normal(1.0, 0.055), 0.86, 1.14))
    female = random.uniform() < 0.45
    return Body(
        seed=seed,
        half_width=scale * (142 + 40 * heavy + random.normal(0, 5)),
        half_depth=scale * (98 + 42 * heavy + random.normal(0, 6)),
        fat=4 + 28 * heavy * random.uniform(0.55, 1.15),
        length=scale * random.uniform(195, 235),
        scale=scale,
        breasts=float(random.uniform(10, 34)) if female else 0.0,
        arms_up=bool(random.uniform() < 0.75),
        phase=("plain", "arterial", "portal")[int(random.choice(3, p=(0.45, 0.3, 0.25)))],
        marrow=float(random.uniform(0.25, 0.8)),
        heart=float(random.uniform(0.88, 1.18)),
        left_dome=float(random.uniform(-22, -5)),
        table=int(random.integers(4)),
    )


def tissue_look(
    body: Body, modality: Modality, contrast: Contrast
) -> Mapping[str, tuple[float, float]]:
    """Value and grain of every tissue in this person, contrast agent included."""
    random = np.random.default_rng([*body.seed, 2])
    look = dict(appearance(modality, SEQUENCES[contrast]))
    blood, liver = look["blood"], look["liver"]
    named = {"artery": blood, "vein": blood, "right heart": blood, "pulmonary": blood}
    named |= {"cava": blood, "hepatic vessel": (blood[0] - 12, 3.0), "content": look["gut"]}
    if modality == "MR":
        # Fast flow leaves no spin echo.
        look |= dict.fromkeys(named, (0.25 * blood[0], blood[1])) | {"content": look["fluid"]}
        look["nodule"] = look["spleen"]
        return look
    u = random.uniform
    look["lung"] = (u(-890, -790), look["lung"][1] * u(0.7, 1.2))
    look["liver"] = (liver[0] + u(-22, 14), liver[1])
    look["spongiosa"] = (40 + (look["spongiosa"][0] - 40) * body.marrow, look["spongiosa"][1])
    look["content"] = (u(0, 45), 18.0)
    look["nodule"] = (u(10, 60), 20.0)
    # Iodine, by phase: HU above plain tissue.
    if body.phase == "arterial":
        named |= {"artery": (u(200, 380), 6.0), "pulmonary": (u(150, 420), 8.0)}
        named |= {"right heart": (u(150, 420), 22.0), "vein": (u(160, 600), 30.0)}
        named |= {"cava": (u(60, 120), 12.0), "hepatic vessel": (u(60, 110), 3.0)}
        gain = {"liver": 18.0, "spleen": 75.0, "kidney": 120.0, "medulla": 25.0, "pancreas": 55.0}
    elif body.phase == "portal":
        value = u(120, 190)
        named |= {name: (value + u(-12, 12), 5.0) for name in named if name != "content"}
        gain = {"liver": 52.0, "spleen": 68.0, "kidney": 140.0, "medulla": 110.0, "pancreas": 45.0}
    else:
        gain = {}
    for name, more in gain.items():
        look[name] = (look[name][0] + more * u(0.8, 1.2), look[name][1])
    for name in ("heart", "muscle", "gut"):
        iodine = {"plain": 0.0, "arterial": 35.0, "portal": 40.0}[body.phase]
        share = 1.0 if name != "muscle" else 0.3
        look[name] = (look[name][0] + iodine * share, look[name][1])
    if u() < 0.35:
        named["content"] = (u(120, 420), 25.0)  # oral contrast
    return look | {"content": look["content"]} | named


def half_axes(body: Body, z: float) -> tuple[float, float]:
    """Half width and half depth of the body."""
    wide = _WIDTH_ARMS_UP if body.arms_up else _WIDTH_ARMS_DOWN
    share = z / body.length
    return (
        body.half_width * float(np.interp(share, _HEIGHTS, wide)),
        body.half_depth * float(np.interp(share, _HEIGHTS, _DEPTH)),
    )


def cage_axes(body: Body, z: Field | float) -> tuple[Field, Field]:
    """Half width and half depth of the cavity within ribs and abdominal wall."""
    share = np.asarray(z, np.float32) / body.length
    wide = (body.half_width - 0.8 * body.fat - 17 * body.scale) * np.interp(
        share, _CAGE_HEIGHTS, _CAGE_WIDTH
    )
    deep = (body.half_depth - 0.7 * body.fat - 15 * body.scale) * np.interp(
        share, _CAGE_HEIGHTS, _CAGE_DEPTH
    )
    return np.asarray(wide, np.float32), np.asarray(deep, np.float32)


def cage_distance(body: Body, x: Field, y: Field, z: Field | float) -> Field:
    """Signed distance to the cavity's wall, flatter at the back."""
    wide, deep = cage_axes(body, z)
    u, v = x / wide, (y + 3) / deep
    front = ellipse_distance(u, v, wide, deep, power=2.15)  # type: ignore[arg-type]
    back = ellipse_distance(u, v, wide, deep, power=2.7)  # type: ignore[arg-type]
    return np.asarray(np.where(y > -3, back, front), np.float32)


def diaphragm_height(body: Body, x: Field, y: Field) -> Field:
    """Height (mm) of the diaphragm over a point: two domes that fall to the recesses."""
    wide, deep = cage_axes(body, 0.0)
    heights = []
    for side, dome in ((-1, 0.0), (1, body.left_dome)):
        u = (x - side * 0.48 * wide) / (0.66 * wide)
        v = (y + 0.16 * deep) / (1.0 * deep)
        heights.append(dome - 82 * body.scale * (u * u + v * v) ** 1.15)
    return np.asarray(np.maximum(*heights), np.float32)


def spine_centre(body: Body, z: float) -> float:
    """y (mm) of the middle of the vertebral bodies."""
    _, deep = cage_axes(body, z)
    share = z / body.length
    bend = float(np.interp(share, (-1.2, -0.8, 0.0, 0.5, 1.1), (-18, -20, -2, 4, -8)))
    return float(deep) * 0.93 - 26 * body.scale + bend * body.scale


def draw_wall(section: Section, body: Body) -> tuple[Field, Field]:
    """Skin, fat and muscles; gives the distances to the skin and to the cavity's wall."""
    z, scale = section.z, body.scale
    share = z / body.length
    wide, deep = half_axes(body, z)
    skin = section.ellipse(0, 0, wide, deep, power=2.35)
    skin = np.where(section.y > 0, section.ellipse(0, 0, wide, deep, power=2.7), skin)
    # The furrow over the spine.
    skin = skin + 6 * np.exp(-((section.x / 24) ** 2)) * (section.y > 0)
    lift = float(np.exp(-(((share - 0.42) / 0.22) ** 2)))
    if body.breasts * lift > 3:
        for side in (-1, 1):
            breast = section.ellipse(
                side * wide * 0.48, -deep * 0.84, wide * 0.36, (body.breasts + 10) * lift
            )
            skin = smooth_union(skin, breast, radius_mm=12.0)
    section.paint(skin, "skin")
    section.paint(skin + 1.8 * scale, "fat")
    cavity = cage_distance(body, section.x, section.y, z)
    _muscles(section, body, skin, cavity, share, wide, deep)
    return skin, cavity


def _muscles(
    section: Section,
    body: Body,
    skin: Field,
    cavity: Field,
    share: float,
    wide: float,
    deep: float,
) -> None:
    scale = body.scale
    high = float(np.interp(share, (0.25, 0.7, 1.0), (0.0, 0.8, 1.0)))
    back = np.clip(section.y / deep, 0, 1) ** 2
    thick = 11 + 15 * back + 15 * high * np.abs(section.x / wide) ** 1.5
    thick = thick + 12 * high * (section.y < 0) * (np.abs(section.x) > 14)
    # The wall's muscles lie on the cage and keep clear of the skin.
    wall = np.maximum(cavity - thick * scale, skin + 0.35 * body.fat + 3)
    section.paint(wall, "muscle")
    ribbon = section.noise(11, 30.0)
    # Fat between muscle layers: at chosen depths over the cage, broken where the field says.
    for number, depth in enumerate((7.0, 13.0, 21.0) if share > -0.15 else (4.5, 9.0)):
        plane = np.abs(cavity - depth * scale - 2.0 * ribbon) - 0.7
        gap = 3.0 * (section.noise(12 + number, 26.0) - 0.2)
        section.paint(np.maximum(plane, gap), "fat", within=wall + 1.5, opacity=0.8)
    column = spine_centre(body, section.z)
    for side in (-1, 1):
        cx, cy = side * 30 * scale, column + 33 * scale
        section.paint(
            section.ellipse(cx, cy, 30 * scale, 21 * scale, power=2.4), "fat", within=skin + 4
        )
        section.paint(
            section.ellipse(cx, cy, 28 * scale, 19 * scale, power=2.4), "muscle", within=skin + 4
        )
    if share < -0.15:  # rectus abdominis
        for side in (-1, 1):
            belly = section.ellipse(
                side * 34 * scale, -float(cage_axes(body, section.z)[1]) - 4, 29 * scale, 6
            )
            section.paint(belly - 1.2, "fat", within=skin + 3)
            section.paint(belly, "muscle", within=skin + 3)
    if not section.textured:
        return
    # Marbling: fat strands in muscle, fibrous septa in fat.
    strands = np.abs(section.noise(15, 7.0, 3.0)) - 0.12 * (1 + section.noise(16, 24.0))
    section.paint(np.maximum(8 * strands, wall + 2), "fat", opacity=0.5, within=-cavity - 1)
    septa = np.abs(section.noise(17, 9.0, 1.5)) - 0.06
    section.paint(np.maximum(9 * septa, skin + 2), "muscle", within=-wall, opacity=0.35)
    if body.breasts:
        glands = 0.9 - section.noise(18, 9.0)
        within = np.maximum(np.maximum(skin + 7, section.y + 0.72 * deep), -wall)
        section.paint(6 * glands, "muscle", within=within, opacity=0.8)


def draw_table(section: Section, body: Body, random: np.random.Generator) -> None:
    """The scanner's table behind the back: thin shells, of a few makes."""
    back = body.half_depth + random.uniform(2, 14)
    bow = random.uniform(0.0006, 0.0016)
    half = random.uniform(190, 240)
    y = section.y_mm[:, None] - back
    across = section.x_mm[None, :]
    if body.table == 1:  # flat with raised edges
        depth = y + 0.35 * np.maximum(np.abs(across) - 120, 0)
    else:
        depth = y - 3600 * bow + bow * across**2
    outside = np.maximum(np.abs(across) - half, 0)
    shells = [(0.0, random.uniform(-850, -150), 1.3)]
    if body.table != 2:
        shells.append((random.uniform(14, 40), random.uniform(-900, -500), 1.1))
    air = section.image < -900
    for place, value, half_mm in shells:
        cover = section.cover(np.abs(depth - place) - half_mm + outside) * air
        section.image += cover * (value - section.image)
