"""Ribs, spine, shoulder girdle and pelvis of a trunk: cortical shells around cancellous bone."""

import numpy as np

from aggregator.distill.body import Body, cage_axes, half_axes, spine_centre
from aggregator.distill.section import Section
from aggregator.distill.texture import Field

RIB_PAIRS = 12


def draw_skeleton(section: Section, body: Body, cavity: Field, skin: Field) -> None:
    """Everything bony in the plane."""
    draw_ribs(section, body, cavity)
    draw_sternum(section, body)
    draw_spine(section, body)
    draw_shoulders(section, body, skin)
    draw_pelvis(section, body)


def _bone(section: Section, shape: Field, shell_mm: float, *, within: Field | None = None) -> None:
    section.paint(shape, "cortical", within=within, opacity=0.65)
    section.paint(shape + shell_mm, "spongiosa", within=within)


def draw_ribs(section: Section, body: Body, cavity: Field) -> None:
    """Ribs run down and forward round the cage, so that a plane cuts each in a short oblique."""
    scale = body.scale
    wide, deep = (float(axis) for axis in cage_axes(body, section.z))
    # Angle from the spine: 0 at the back, pi at the front.
    angle = np.abs(np.arctan2(section.x / wide, section.y / deep))
    spacing = 27.0 * scale * body.length / 215
    drop = 50 * scale * np.minimum(angle, 2.35)
    # Height of this point's own rib root above the first rib, in ribs.
    place = (body.length * 1.06 - (section.z + drop)) / spacing
    rib = np.round(place)
    along = (place - rib) * spacing * 0.86  # across the rib, in its own slope
    out = cavity - 4.5 * scale
    shape = np.sqrt((out / (3.6 * scale)) ** 2 + (along / (6.4 * scale)) ** 2) - 1
    shape = np.asarray(shape * 3.6 * scale, np.float32)
    last = np.where(rib >= RIB_PAIRS - 2, 1.5, 2.35)  # floating ribs end early
    present = (rib >= 0) & (rib < RIB_PAIRS) & (angle > 0.16)
    section.paint(np.where(present & (angle < last), shape, 9.0), "cortical", opacity=0.6)
    section.paint(np.where(present & (angle < last), shape + 1.5, 9.0), "spongiosa")
    costal = present & (angle >= last) & (rib < 10) & (angle < 3.05)
    section.paint(np.where(costal, shape, 9.0), "cartilage")


def draw_sternum(section: Section, body: Body) -> None:
    """Manubrium and body, behind the skin of the chest."""
    share = section.z / body.length
    if not 0.05 < share < 0.82:
        return
    _, deep = (float(axis) for axis in cage_axes(body, section.z))
    wide = 24.0 if share > 0.62 else 15.0
    plate = section.ellipse(0, -deep - 4, wide * body.scale, 5.5 * body.scale, power=2.6)
    _bone(section, plate, 1.4)


def draw_spine(section: Section, body: Body) -> None:
    """Vertebral bodies with discs between them, arches and processes."""
    scale = body.scale
    column = spine_centre(body, section.z)
    low = float(np.interp(section.z / body.length, (-1.0, 0.0, 1.1), (1.22, 1.0, 0.72)))
    height = 27.0 * scale * body.length / 215 * (0.85 + 0.2 * low)
    phase = (section.z / height) % 1.0  # 0..1 from one disc to the next
    rx, ry = 19.5 * scale * low, 15.5 * scale * low
    vertebra = section.ellipse(0, column, rx, ry, power=2.3)
    section.paint(vertebra - 3, "fat", opacity=0.6)
    canal = section.ellipse(0, column + ry + 8.5 * scale, 10 * scale, 8 * scale)
    if phase < 0.16:
        section.paint(vertebra, "cartilage", opacity=0.9)
    else:
        endplate = phase < 0.24 or phase > 0.94
        section.paint(vertebra, "cortical", opacity=0.5)
        section.paint(vertebra + 1.3, "spongiosa")
        if endplate:
            section.paint(vertebra + 1.3, "cortical", opacity=0.22)
        if 0.45 < phase < 0.6:  # basivertebral vein
            section.paint(section.line((0, column), (0, column + ry), 1.6), "marrow", opacity=0.8)
    back = column + ry + 8.5 * scale
    if phase > 0.5:  # pedicles and transverse processes
        for side in (-1, 1):
            _bone(
                section,
                section.line(
                    (side * 13 * scale, column + ry - 3), (side * 14 * scale, back), 4.2 * scale
                ),
                1.3,
            )
            if phase > 0.62:
                end = (side * (34 if section.z < 0 else 31) * scale, back + 7 * scale)
                _bone(section, section.line((side * 14 * scale, back + 1), end, 3.8 * scale), 1.4)
    if phase < 0.55 or phase > 0.8:  # laminae and facet joints
        for side in (-1, 1):
            arch = section.line(
                (side * 12.5 * scale, back + 2), (0, back + 13 * scale), 3.2 * scale
            )
            _bone(section, arch, 1.3)
            if phase < 0.35:
                facet = section.ellipse(side * 15 * scale, back + 3, 6.5 * scale, 5.5 * scale)
                _bone(section, facet, 1.6)
    reach = back + (13 + 19 * float(np.clip(1.2 - phase, 0.2, 1))) * scale
    _bone(section, section.line((0, back + 13 * scale), (0, reach), 3.0 * scale), 1.3)
    section.paint(canal, "fat", opacity=0.5)
    section.paint(canal + 1.5, "fluid")
    section.paint(section.ellipse(0, back, 5.2 * scale, 4.2 * scale), "white")


def draw_shoulders(section: Section, body: Body, skin: Field) -> None:
    """Scapulae, clavicles, the heads of the humeri; arms beside the trunk where they are down."""
    scale, share = body.scale, section.z / body.length
    wide, _ = half_axes(body, section.z)
    cage, back = (float(axis) for axis in cage_axes(body, section.z))
    inside = skin + 5
    for side in (-1, 1):
        if 0.42 < share < 1.05:
            spread = float(np.interp(share, (0.42, 0.7, 1.0), (0.0, 1.0, 1.15)))
            start = (side * (cage * 0.62), back + 12 * scale)
            end = (side * (cage * 0.62 + 62 * scale * spread), back - (8 + 46 * spread) * scale)
            _bone(section, section.line(start, end, 2.7 * scale), 1.2, within=inside)
            if share > 0.72:  # spine of the scapula, glenoid
                tip = (end[0] + side * 8 * scale, end[1] + 14 * scale)
                mid = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
                _bone(section, section.line(mid, tip, 3.0 * scale), 1.2, within=inside)
                _bone(
                    section,
                    section.ellipse(end[0], end[1], 9 * scale, 13 * scale),
                    1.6,
                    within=inside,
                )
        clavicle = section.tube(
            (side * 16 * scale, -back * 0.9, 0.80 * body.length),
            (side * wide * 0.80, -8 * scale, 1.06 * body.length),
            6.2 * scale,
        )
        _bone(section, clavicle, 1.6, within=inside)
        head = section.ellipsoid(
            (side * (wide - 34 * scale), -2 * scale, 1.03 * body.length),
            np.array((23, 23, 26)) * scale,
        )
        if share > 0.9:
            _bone(section, head, 1.8, within=inside)
        if not body.arms_up and share < 0.95:
            _arm(section, body, side)


def _arm(section: Section, body: Body, side: int) -> None:
    scale = body.scale
    wide, _ = half_axes(body, min(section.z, 0.45 * body.length))
    radius = (30 + 0.55 * body.fat) * scale
    cx, cy = side * (wide + radius + 5), 8.0 * scale
    limb = section.ellipse(cx, cy, radius, radius * 1.08)
    section.paint(limb, "skin")
    section.paint(limb + 1.8, "fat")
    section.paint(limb + 3 + 0.45 * body.fat, "muscle")
    plane = np.abs(section.ellipse(cx, cy + 3, radius * 0.5, radius * 0.05)) - 0.8
    section.paint(plane, "fat", within=limb + 8, opacity=0.7)
    shaft = section.ellipse(cx, cy, 11 * scale, 11 * scale)
    section.paint(shaft, "cortical")
    section.paint(shaft + 3.8 * scale, "marrow")


def draw_pelvis(section: Section, body: Body) -> None:
    """Iliac wings and gluteal muscles below the crest."""
    scale = body.scale
    depth = -section.z - 0.98 * body.length  # below the crest
    if depth < 0:
        return
    wide, deep = (float(axis) for axis in cage_axes(body, section.z))
    grown = min(1.0, depth / (45 * scale))
    for side in (-1, 1):
        muscle = section.ellipse(
            side * wide * 0.62, deep * 0.80, 52 * scale * grown, 30 * scale * grown
        )
        section.paint(muscle - 1.5, "fat", opacity=0.8)
        section.paint(muscle, "muscle")
        start = (side * wide * (0.96 - 0.06 * grown), deep * (0.30 - 0.55 * grown))
        end = (side * wide * (0.90 - 0.46 * grown), deep * (0.42 + 0.42 * grown))
        _bone(section, section.line(start, end, 4.6 * scale), 1.7)
