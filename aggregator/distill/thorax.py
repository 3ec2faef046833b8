"""Lungs, mediastinum and heart of a virtual person.

Lung parenchyma has a power-law texture under vessel trees that fill each lung; sections at
different heights cut the same trees, vessels and chambers.
"""

from functools import lru_cache

import numpy as np

from aggregator.distill.body import (
    Body,
    cage_axes,
    cage_distance,
    diaphragm_height,
    spine_centre,
)
from aggregator.distill.section import Section
from aggregator.distill.texture import REACH_MM, Field
from aggregator.distill.vessels import Segments, grow_tree, tube_cover

LUNG_HALVINGS = 10
"""Each vessel tree of one lung has 2^10 ends."""
_MID_HEIGHTS = (-0.3, 0.05, 0.33, 0.5, 0.62, 0.8, 1.0)
_MID_WIDTHS = (17.0, 22.0, 33.0, 33.0, 30.0, 27.0, 22.0)


def heart_centre(body: Body) -> tuple[float, float, float]:
    """Centre of the heart; it rests on the left dome."""
    _, deep = cage_axes(body, 0.15 * body.length)
    return 17.0 * body.scale, -0.32 * float(deep), 0.15 * body.length


def heart_distance(body: Body, x: Field, y: Field, z: Field | float) -> Field:
    """Signed distance (mm, about) to the pericardium, an ellipsoid that leans to the left."""
    cx, cy, cz = heart_centre(body)
    size = body.scale * body.heart
    dx, dy, dz = x - cx, y - cy, z - cz
    u, v = dx * 0.87 + dy * 0.35, dy * 0.87 - dx * 0.42
    rho = np.sqrt((u / 58) ** 2 + (v / 43) ** 2 + (dz / 54) ** 2) / size
    return np.asarray((rho - 1) * 46 * size, np.float32)


def lung_distance(body: Body, x: Field, y: Field, z: Field | float) -> Field:
    """Signed distance (mm, about) to either lung; negative inside."""
    wall = cage_distance(body, x, y, z) + 3
    floor = (diaphragm_height(body, x, y) - z) / 1.6
    share = np.asarray(z, np.float32) / body.length
    _, deep = cage_axes(body, z)
    middle = np.interp(share, _MID_HEIGHTS, _MID_WIDTHS)
    front = np.interp(share, (0.0, 0.5, 0.8), (5.0, 7.0, 17.0))
    place = (y + 3) / deep
    bulge = np.clip(1 - ((place - 0.0) / 0.55) ** 2, 0, 1)
    behind = np.clip((place - 0.15) / 0.3, 0, 1) * 21.0
    width = np.maximum(front + (middle - front) * bulge, behind) * body.scale
    between = width - np.abs(x - 4 * body.scale * bulge)
    heart = -heart_distance(body, x, y, z) + 2.5
    return np.asarray(np.maximum.reduce([wall, floor, between, heart]), np.float32)


@lru_cache(maxsize=32)
def lung_trees(body: Body) -> tuple[Segments, Segments]:
    """Pulmonary arteries and veins of both lungs."""
    random = np.random.default_rng([*body.seed, 20])
    wide, deep = (float(axis) for axis in cage_axes(body, 0.2 * body.length))
    arteries: list[Segments] = []
    veins: list[Segments] = []
    for side in (-1, 1):
        for trees, height, y in ((arteries, 0.40, 0.02), (veins, 0.30, -0.06)):
            box = random.uniform(
                (0, -deep, -85 * body.scale), (wide, deep, body.length), size=(7_000, 3)
            )
            x, depth, z = (np.asarray(column, np.float32) for column in box.T)
            inside = lung_distance(body, side * x, depth, z) < -2.5
            points = box[inside] * (side, 1, 1)
            root = np.array((side * 30 * body.scale, y * deep, height * body.length))
            tree = grow_tree(
                root, points, halvings=LUNG_HALVINGS, twig_mm=0.55 * body.scale, random=random
            )
            trees.append(tree)
    return np.concatenate(arteries), np.concatenate(veins)


def draw_thorax(section: Section, body: Body) -> Field:
    """Mediastinum, heart and lungs in a cavity that is already fat; gives the lungs' cover."""
    _heart(section, body)
    _great_vessels(section, body)
    lungs = lung_distance(body, section.x, section.y, section.z)
    section.paint(np.abs(lungs) - 0.7, "muscle", opacity=0.6)  # pleura and diaphragm
    cover = section.paint(lungs, "lung")
    if section.z > -90 * body.scale:
        _airways(section, body)
        if section.textured and cover.max() > 0:
            _lung_texture(section, body, lungs, cover)
    return cover


def _heart(section: Section, body: Body) -> None:
    size = body.scale * body.heart
    shape = heart_distance(body, section.x, section.y, section.z)
    if shape.min() > 4:
        return
    cx, cy, cz = heart_centre(body)
    section.paint(shape, "fat")  # epicardial
    section.paint(shape + 4 + 2.2 * section.noise(21, 26.0), "heart")

    def chamber(
        at: tuple[float, float, float], radii: tuple[float, float, float], turn: float
    ) -> Field:
        centre = (cx + at[0] * size, cy + at[1] * size, cz + at[2] * size)
        rough = section.noise(22, 11.0) * (1.6 if section.textured else 0.0)
        scaled = [radius * size for radius in radii]
        return section.ellipsoid(centre, scaled, degrees=turn) + rough

    # Left ventricle, right ventricle, right and left atrium.
    section.paint(chamber((20, 2, -8), (25, 17, 30), 35), "artery", within=shape + 9)
    section.paint(chamber((-2, -18, -12), (30, 13, 32), 30), "right heart", within=shape + 6)
    section.paint(chamber((-34, 4, 2), (19, 24, 30), 10), "right heart", within=shape + 4)
    section.paint(chamber((-4, 26, 12), (32, 15, 24), 0), "artery", within=shape + 4)


def _great_vessels(section: Section, body: Body) -> None:
    scale, length = body.scale, body.length
    random = np.random.default_rng([*body.seed, 21])
    _, deep = (float(axis) for axis in cage_axes(body, 0.4 * length))
    wide = random.uniform(0.88, 1.2, 8)
    column = spine_centre(body, section.z)
    front, back = -0.24 * deep, spine_centre(body, 0.55 * length) - 20 * scale

    def place(x: float, y: float, height: float) -> tuple[float, float, float]:
        return x * scale, y, height * length

    aorta, trunk, cava = 15.5 * scale * wide[0], 14 * scale * wide[1], 9 * scale * wide[2]
    tubes = [
        (place(-4, front + 12, 0.26), place(-15, front, 0.42), aorta, "artery"),
        (place(-15, front, 0.42), place(-8, front + 8, 0.58), aorta, "artery"),
        (place(-8, front + 8, 0.59), place(22, back, 0.60), aorta * 0.93, "artery"),
        (place(12, front - 4, 0.28), place(17, front + 4, 0.43), trunk, "pulmonary"),
        (place(17, front + 6, 0.42), place(-32, 0.0, 0.40), trunk * 0.8, "pulmonary"),
        (place(17, front + 6, 0.43), place(38, 0.10 * deep, 0.44), trunk * 0.85, "pulmonary"),
        (place(-30, front + 8, 0.22), place(-27, front + 6, 0.66), cava, "vein"),
        (place(-27, front + 6, 0.66), place(-24, front - 2, 0.92), cava * 0.8, "vein"),
        (place(-27, front + 2, 0.66), place(34, front - 4, 0.84), cava * 0.7, "vein"),
        (place(-12, front + 6, 0.62), place(-22, 0.0, 0.98), 5.5 * scale, "artery"),
        (place(4, front + 14, 0.62), place(16, 0.0, 1.2), 4 * scale, "artery"),
        (place(16, back - 20, 0.62), place(30, back - 16, 0.98), 4.6 * scale, "artery"),
        (place(-22, 2, 0.98), place(-24, -2, 1.4), 3.6 * scale, "artery"),
    ]  # fmt: skip
    section.paint(section.ellipse(5 * scale, column - 23 * scale, 9 * scale, 6.5 * scale), "muscle")
    if section.z < 0.60 * length:  # descending aorta
        x = float(np.interp(section.z / length, (-0.9, -0.3, 0.3, 0.6), (1, 8, 19, 22))) * scale
        y = column - float(np.interp(section.z / length, (-0.6, 0.0, 0.4), (27, 24, 18))) * scale
        radius = float(np.interp(section.z / length, (-1.0, 0.5), (8.0, 12.5))) * scale * wide[3]
        section.paint(section.ellipse(x, y, radius + 1.2, radius + 1.2), "muscle")
        section.paint(section.ellipse(x, y, radius, radius), "artery")
        if wide[4] > 1.05:  # calcified plaque
            spot = section.line((x - radius, y), (x - 0.7 * radius, y + 0.7 * radius), 1.1)
            section.paint(spot, "cortical", within=2.5 * section.noise(23, 9.0))
    for start, end, radius, tissue in tubes:
        shape = section.tube(start, end, radius)
        section.paint(shape - 0.8, "muscle", opacity=0.8)
        section.paint(shape, tissue)
    # Lymph nodes and the thymus' remains.
    for centre in random.uniform((-34, -0.35 * deep, 0.3), (34, 0.25 * deep, 0.75), (14, 3)):
        at = (centre[0] * scale, centre[1], centre[2] * length)
        section.paint(section.ellipsoid(at, random.uniform(2.5, 6.0, 3)), "muscle", opacity=0.9)


def _airways(section: Section, body: Body) -> None:
    scale, length = body.scale, body.length
    _, deep = (float(axis) for axis in cage_axes(body, 0.48 * length))
    y = 0.06 * deep
    tubes = (
        ((0.0, y - 14, 1.5 * length), (0.0, y, 0.49 * length), 9.0 * scale),
        ((0.0, y, 0.50 * length), (-34 * scale, y + 6, 0.38 * length), 7.0 * scale),
        ((0.0, y, 0.50 * length), (40 * scale, y + 10, 0.36 * length), 6.2 * scale),
        ((-34 * scale, y + 6, 0.38 * length), (-50 * scale, y + 16, 0.2 * length), 4.2 * scale),
        ((40 * scale, y + 10, 0.36 * length), (54 * scale, y + 20, 0.18 * length), 3.8 * scale),
    )
    for start, end, radius in tubes:
        shape = section.tube(start, end, radius)
        section.paint(shape - 1.4, "muscle")
        section.paint(shape, "air", opacity=0.97)
    neck = section.ellipsoid((0, y - 12, 1.08 * length), (26 * scale, 12 * scale, 26 * scale))
    section.paint(neck, "liver", within=-section.tube(*tubes[0]) - 1.5)  # thyroid: bright, as it is


def _lung_texture(section: Section, body: Body, lungs: Field, cover: Field) -> None:
    random = np.random.default_rng([*body.seed, 22])
    arteries, veins = lung_trees(body)
    # Gravity: the lung is denser towards the back.
    slope = random.uniform(15, 80) * np.clip(section.y / body.half_depth, -1, 1)
    unit = 1.0 if section.look["air"][0] < 0 else section.look["muscle"][0] / 1000
    section.image += cover * slope * unit
    if random.uniform() < 0.4:  # emphysema
        holes = np.clip(section.noise(31, 7.0) - random.uniform(0.2, 1.0), 0, None)
        section.image -= cover * np.clip(60 * holes, 0, 110) * unit
    if random.uniform() < 0.45:  # ground glass, reticulation, consolidation
        patch = section.noise(32, 38.0) + np.clip(section.y / body.half_depth, -1, 1)
        dense = np.clip(patch - random.uniform(0.7, 1.9), 0, 1) * cover
        mesh = 0.45 + np.clip(0.5 - np.abs(section.noise(33, 5.0)), 0, 1)
        section.image += dense * mesh * random.uniform(250, 800) * unit
    if random.uniform() < 0.15:  # effusion, lying at the back
        side = 1 if random.uniform() < 0.5 else -1
        level = random.uniform(0.25, 0.6) * body.half_depth
        fluid = np.maximum(lungs, level - section.y - 0.12 * section.z)
        section.paint(np.maximum(fluid, -side * section.x), "fluid")
    wide, deep = (float(axis) for axis in cage_axes(body, 0.2 * body.length))
    for _ in range(int(random.integers(0, 7))):
        centre = random.uniform((-wide, -deep, -30), (wide, deep, body.length))
        radius = float(random.gamma(2.0, 2.6))
        rough = 0.25 * radius * section.noise(34, max(radius, 3.0))
        shape = section.ellipsoid(centre, random.uniform(0.8, 1.2, 3) * radius) + rough
        section.paint(shape, "nodule", within=lungs)
    keep = cover * (np.abs(section.x) < REACH_MM)
    for segments, tissue in ((veins, "pulmonary"), (arteries, "pulmonary")):
        vessels = tube_cover(section, segments) * keep
        value, grain = section.look[tissue]
        section.image += vessels * (value - section.image)
        section.grain += vessels * (grain - section.grain)
    # Airways run beside arteries; those that are wide enough show as rings.
    large = arteries[arteries[:, 6] > 1.25].copy()
    if len(large):
        large[:, (0, 3)] += (large[:, 6:7] * 1.7) * np.sign(large[:, 0:1])
        large[:, (1, 4)] += large[:, 6:7] * 1.2
        large[:, 6] *= 0.9
        wall, hole = (
            tube_cover(section, large, widen_mm=0.7) * keep,
            tube_cover(section, large) * keep,
        )
        section.image += 0.7 * wall * (section.look["muscle"][0] - section.image)
        section.image += hole * (section.look["air"][0] - section.image)
