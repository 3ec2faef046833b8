"""Liver, spleen, kidneys, gut and vessels below the diaphragm of a virtual person."""

from functools import lru_cache
from itertools import pairwise

import numpy as np

from aggregator.distill.body import Body, cage_axes, cage_distance, diaphragm_height, spine_centre
from aggregator.distill.section import Section
from aggregator.distill.texture import Field
from aggregator.distill.vessels import Segments, grow_tree, tube_cover

HALVINGS = 8
"""Vessel trees have 2^8 ends."""


def liver_distance(body: Body, x: Field, y: Field, z: Field | float) -> Field:
    """Signed distance (mm, about) to the liver: what lies under the right dome."""
    wide, deep = cage_axes(body, -20.0)
    s = body.scale
    cavity = cage_distance(body, x, y, z) + 4
    dome = (z - diaphragm_height(body, x, y)) / 1.6 + 3
    right = np.sqrt(
        ((x + 0.52 * wide) / (0.60 * wide)) ** 2 + ((y + 4) / (0.98 * deep)) ** 2
        + ((z + 35 * s) / (105 * s)) ** 2
    )  # fmt: skip
    left = np.sqrt(
        ((x + 0.02 * wide) / (0.62 * wide)) ** 2 + ((y + 0.48 * deep) / (0.44 * deep)) ** 2
        + ((z + 30 * s) / (52 * s)) ** 2
    )  # fmt: skip
    lobes = np.minimum((right - 1) * 60 * s, (left - 1) * 40 * s)
    return np.asarray(np.maximum.reduce([cavity, dome, lobes]), np.float32)


@lru_cache(maxsize=32)
def liver_trees(body: Body) -> tuple[Segments, Segments]:
    """Portal and hepatic veins."""
    random = np.random.default_rng([*body.seed, 40])
    wide, deep = (float(axis) for axis in cage_axes(body, 0.0))
    trees = []
    for root in ((-14, -6, -62), (-20, 18, -2)):
        box = random.uniform((-wide, -deep, -130), (0.5 * wide, deep, 0), (4_000, 3))
        x, y, z = (np.asarray(column, np.float32) for column in box.T)
        points = box[liver_distance(body, x, y, z) < -6]
        start = np.asarray(root, np.float64) * body.scale
        tree = grow_tree(start, points, halvings=HALVINGS, twig_mm=0.75 * body.scale, random=random)
        trees.append(tree)
    return trees[0], trees[1]


@lru_cache(maxsize=32)
def mesenteric_tree(body: Body) -> Segments:
    """Vessels in the fat between the loops of gut."""
    random = np.random.default_rng([*body.seed, 41])
    wide, deep = (float(axis) for axis in cage_axes(body, -0.7 * body.length))
    box = random.uniform((-0.8, -0.85, -1.25), (0.8, 0.25, -0.35), (2**HALVINGS, 3))
    points = box * (wide, deep, body.length)
    root = np.array((2.0, spine_centre(body, -100.0) - 45 * body.scale, -0.42 * body.length))
    return grow_tree(root, points, halvings=HALVINGS, twig_mm=0.55 * body.scale, random=random)


def draw_abdomen(section: Section, body: Body, cavity: Field) -> None:
    """Organs, from the back to the front, in a cavity that is already fat."""
    below = (section.z - diaphragm_height(body, section.x, section.y)) / 1.6
    room = np.asarray(np.maximum(cavity + 3, below + 2), np.float32)
    if room.min() > 0:
        return
    scale, z = body.scale, section.z
    random = np.random.default_rng([*body.seed, 42])
    wide, deep = (float(axis) for axis in cage_axes(body, z))
    column = spine_centre(body, z)
    _back(section, body, column, room)
    _gut(section, body, room, wide, deep)
    _stomach(section, body, room, random)
    centre, radii = (0.74 * wide, 0.30 * deep, -38 * scale), np.array((27, 46, 50)) * scale
    section.paint(section.ellipsoid(centre, radii, degrees=-20), "spleen", within=room)
    _kidneys(section, body, column, random, room)
    _pancreas(section, body, column, room)
    liver = liver_distance(body, section.x, section.y, z) + 3 * section.noise(43, 40.0)
    organ = section.paint(liver, "liver", within=room)
    if organ.max() > 0:
        _liver(section, body, organ, random)
    gall = section.ellipsoid(
        (-0.42 * wide, -0.35 * deep, -92 * scale), np.array((15, 19, 26)) * scale
    )
    section.paint(gall - 1.2, "gut", within=room)
    section.paint(gall, "fluid", within=room)


def _back(section: Section, body: Body, column: float, room: Field) -> None:
    """Psoas, crura, inferior vena cava, iliac vessels."""
    scale, share = body.scale, section.z / body.length
    if share < -0.3:
        size = float(np.interp(share, (-1.1, -0.75, -0.3), (1.35, 1.0, 0.3))) * scale
        for side in (-1, 1):
            at = side * (26 * scale + 10 * size)
            section.paint(section.ellipse(at, column + 2, 15 * size, 19 * size), "muscle")
            quadratus = section.ellipse(
                side * 62 * scale, column + 20 * scale, 18 * size, 12 * size
            )
            section.paint(quadratus, "muscle")
    if -0.45 < share < 0.02:  # crura of the diaphragm
        for side in (-1, 1):
            start = (side * 9 * scale, column - 30 * scale)
            section.paint(section.line(start, (side * 24 * scale, column), 3.2 * scale), "muscle")
    if share < 0.06:
        y = column - float(np.interp(share, (-0.4, 0.0), (24, 34))) * scale
        x = -float(np.interp(share, (-0.4, 0.0), (17, 22))) * scale
        section.paint(section.ellipse(x, y, 12.5 * scale, 9.5 * scale), "cava")
    if section.textured:
        vessels = tube_cover(section, mesenteric_tree(body)) * section.cover(room + 6)
        section.image += vessels * (section.look["vein"][0] - section.image)


def _liver(section: Section, body: Body, organ: Field, random: np.random.Generator) -> None:
    value = section.look["hepatic vessel"][0]
    if section.textured:
        for tree in liver_trees(body):
            section.image += tube_cover(section, tree) * organ * (value - section.image)
    for _ in range(int(random.integers(0, 4))):  # cysts
        centre = random.uniform((-110, -60, -110), (10, 60, -10)) * body.scale
        radius = random.gamma(2.0, 3.0)
        shape = section.ellipsoid(centre, (radius, radius, radius))
        section.paint(shape, "fluid", opacity=float(organ.max()), within=0.5 - organ)


def _stomach(section: Section, body: Body, room: Field, random: np.random.Generator) -> None:
    scale = body.scale
    wide, deep = (float(axis) for axis in cage_axes(body, -30.0))
    size = random.uniform(0.75, 1.2) * scale
    fundus = section.ellipsoid(
        (0.42 * wide, -0.06 * deep, -32 * scale), np.array((44, 40, 46)) * size
    )
    antrum = section.tube(
        (0.38 * wide, -0.3 * deep, -60 * scale),
        (-0.12 * wide, -0.4 * deep, -88 * scale),
        21 * size,
        15 * size,
    )
    shape = np.minimum(fundus, antrum) + 2.5 * section.noise(44, 14.0)
    section.paint(shape, "gut", within=room)
    section.paint(shape + 4.5, "content", within=room + 3)
    level = float(-0.06 * deep + random.uniform(-26, 10) * scale)
    section.paint(np.maximum(shape + 4.5, section.y - level), "air", within=room + 3)


def _kidneys(
    section: Section, body: Body, column: float, random: np.random.Generator, room: Field
) -> None:
    scale = body.scale
    for side, drop in ((-1, 14.0), (1, 4.0)):
        centre = (side * 60 * scale, column - 4 * scale, (-100 - drop) * scale)
        turn = side * 32.0
        capsule = section.ellipsoid(centre, np.array((25, 31, 55)) * scale, degrees=turn)
        section.paint(capsule + 1.5 * section.noise(45, 16.0), "kidney", within=room)
        pyramids = section.noise(46, 12.0) * 4
        section.paint(np.maximum(capsule + 8 * scale, pyramids - 2), "medulla", within=room)
        hilum = (centre[0] - side * 8 * scale, centre[1] - 5 * scale, centre[2])
        sinus = section.ellipsoid(hilum, np.array((13, 14, 33)) * scale, degrees=turn)
        section.paint(sinus + 2 * section.noise(47, 8.0), "fat", within=room)
        pelvis = section.ellipsoid(hilum, np.array((6, 7, 18)) * scale, degrees=turn)
        section.paint(pelvis + 1.5 * section.noise(48, 8.0), "fluid", within=room)
        vessel = (0.0, column - 26 * scale, centre[2])
        section.paint(section.tube(vessel, hilum, 3.4 * scale), "cava", within=room)
        gland = (side * 36 * scale, column - 12 * scale)
        if -72 * scale < section.z < -40 * scale:  # adrenal
            for tip in ((-9, 16), (9, 14)):
                end = (gland[0] + tip[0] * scale, gland[1] + tip[1] * scale)
                section.paint(section.line(gland, end, 2.2 * scale), "muscle", within=room)
        if random.uniform() < 0.4:  # cyst
            at = np.asarray(centre) + random.uniform(-1, 1, 3) * (16, 16, 40) * scale
            radius = float(random.uniform(4, 15)) * scale
            section.paint(section.ellipsoid(at, (radius, radius, radius)), "fluid", within=room)


def _pancreas(section: Section, body: Body, column: float, room: Field) -> None:
    scale = body.scale
    path = [(-34, -58, -104), (-8, -50, -90), (24, -44, -84), (62, -22, -70)]
    places = [(x * scale, column + y * scale, z * scale) for x, y, z in path]
    for start, end in pairwise(places):
        lobulated = section.tube(start, end, 10.5 * scale) + 3.5 * section.noise(49, 7.0)
        section.paint(lobulated, "pancreas", within=room)
    section.paint(section.tube(places[0], places[3], 4.4 * scale), "cava", within=room)  # splenic


def _gut(section: Section, body: Body, room: Field, wide: float, deep: float) -> None:
    """Loops of small bowel between the level sets of a field; the colon along the sides."""
    scale, share = body.scale, section.z / body.length
    if share > -0.18:
        return
    shallow = np.maximum(section.ellipse(0, -0.28 * deep, 0.80 * wide, 0.62 * deep), room + 3)
    fade = float(np.interp(share, (-0.55, -0.3), (0.0, 1.4)))
    loops = section.noise(50, 14.0) + 0.3 * section.noise(51, 8.0)
    wall = np.maximum(8 * (fade + 0.32 - np.abs(loops)), shallow)
    section.paint(wall, "gut")
    section.paint(wall + 3.2, "content", within=section.noise(52, 45.0) * 12)
    section.paint(wall + 3.2, "fluid", within=-section.noise(52, 45.0) * 12 - 2, opacity=0.5)
    gas = np.maximum(wall + 3.6, section.y + 0.30 * deep + 12 * section.noise(53, 36.0))
    section.paint(gas, "air", within=8 * (0.8 - section.noise(54, 40.0)))
    if share < -0.3:
        for side, y in ((-1, 0.10), (1, 0.22)):
            _colon(
                section,
                section.ellipse(side * 0.80 * wide, y * deep, 22 * scale, 24 * scale),
                room,
                60 + side,
            )
    hung = [(-0.72, -0.45, -0.62), (-0.4, -0.72, -0.6), (0.4, -0.72, -0.52), (0.74, -0.4, -0.36)]
    places = [(x * wide, y * deep, z * body.length) for x, y, z in hung]
    parts = [section.tube(start, end, 19 * scale) for start, end in pairwise(places)]
    _colon(section, np.minimum.reduce(parts), room, 64)  # transverse


def _colon(section: Section, tube: Field, room: Field, channel: int) -> None:
    """Haustra, stool with gas in it, gas above."""
    shape = tube + 5 * section.noise(channel, 16.0)
    section.paint(shape, "gut", within=room + 1)
    section.paint(shape + 2.6, "content", within=room + 3)
    if section.textured:
        mottle = 5 * (0.75 - section.noise(channel + 10, 4.0))
        section.paint(np.maximum(mottle, shape + 3.4), "air", within=room + 3, opacity=0.7)
    gas = np.maximum(shape + 3, 7 * (0.5 - section.noise(channel + 20, 30.0)))
    section.paint(gas, "air", within=room + 3)
