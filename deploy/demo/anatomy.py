"""Axial slices of an invented person's chest and upper abdomen, in HU.

Tissues, sizes and CT numbers are those of textbooks; nobody was scanned for them. A patient is a
handful of random numbers; a slice is drawn from them at a level between the apex of the lungs (0)
and the upper abdomen (1.2). The generator shares nothing with the aggregator's prior.
"""

import math
from dataclasses import dataclass

import numpy as np

from deploy.demo.canvas import Canvas, Field, blank, smooth_union
from deploy.demo.skeleton import draw_ribs, draw_spine

FAT_HU = -105.0
MUSCLE_HU = 52.0


@dataclass(frozen=True)
class Patient:
    """What makes one phantom patient differ from another; lengths in mm."""

    seed: int
    half_width: float
    half_depth: float
    fat: float
    breasts: float
    lung_hu: float
    blood_hu: float
    marrow_hu: float
    heart: float
    emphysema: float
    nodules: int


def draw_patient(seed: int, *, size: float) -> Patient:
    """A random adult; ``size`` scales the body, 1 being average."""
    rng = np.random.default_rng([seed, 1])
    heavy = rng.uniform(0, 1)
    enhanced = rng.uniform() < 0.45
    return Patient(
        seed=seed,
        half_width=size * (150 + 32 * heavy + rng.normal(0, 6)),
        half_depth=size * (98 + 26 * heavy + rng.normal(0, 5)),
        fat=5 + 22 * heavy * rng.uniform(0.5, 1.2),
        breasts=rng.uniform(14, 34) if rng.uniform() < 0.45 else 0.0,
        lung_hu=rng.normal(-845, 28),
        blood_hu=rng.uniform(130, 260) if enhanced else rng.uniform(36, 50),
        marrow_hu=rng.uniform(110, 270),
        heart=rng.uniform(0.85, 1.2),
        emphysema=rng.uniform(0, 70) if rng.uniform() < 0.35 else 0.0,
        nodules=int(rng.integers(0, 4)),
    )


def draw_slice(
    patient: Patient,
    *,
    level: float,
    size_px: int,
    pixel_mm: float,
    centre: tuple[float, float] = (0.0, 0.0),
) -> Field:
    """HU of one slice (S, S) without table or noise, the body at ``centre`` (mm)."""
    rng = np.random.default_rng([patient.seed, round(level * 1000), 2])
    canvas = blank(size_px=size_px, pixel_mm=pixel_mm, centre=centre, bend_mm=12.0, rng=rng)
    cage_a = patient.half_width - patient.fat * 0.8 - 21
    cage_b = patient.half_depth - patient.fat * 0.6 - 17
    narrow = 1 - 0.30 * max(0.0, 0.45 - level) / 0.45  # the cage narrows towards the apex
    cage_a, cage_b = cage_a * narrow, cage_b * (0.4 + 0.6 * narrow)
    cage = _flat_backed(canvas, -3, cage_a, cage_b)
    _trunk(canvas, patient, level, cage)
    column = cage_b - 36  # centre of the vertebral body
    organs = _domes(canvas, patient, level, cage_a, cage_b)
    heart = _heart_shape(canvas, patient, level, cage_a, cage_b)
    lungs = _lungs(canvas, patient, level, cage, column, [*organs, heart])
    _vessels(canvas, patient, level, lungs, cage_a)
    _abdomen(canvas, patient, level, organs, cage, cage_a, cage_b)
    _mediastinum(canvas, patient, level, heart, cage_b, column)
    draw_spine(canvas, column=column, marrow_hu=patient.marrow_hu)
    draw_ribs(canvas, level=level, cage_a=cage_a, cage_b=cage_b, marrow_hu=patient.marrow_hu)
    return canvas.hu


def _flat_backed(canvas: Canvas, cy: float, a: float, b: float) -> Field:
    """An oval that is flatter at the back than in front."""
    front = canvas.ellipse(0, cy, a, b, square=0.15)
    return np.where(canvas.y > cy, canvas.ellipse(0, cy, a, b, square=0.45), front)


def _trunk(canvas: Canvas, patient: Patient, level: float, cage: Field) -> None:
    """Skin, fat with its septa, the muscles of the wall with fat between them."""
    a, b, fat = patient.half_width, patient.half_depth, patient.fat
    body = _flat_backed(canvas, 0, a, b)
    body = body + 6 * np.exp(-((canvas.x / 26) ** 2)) * (canvas.y > 0)  # furrow over the spine
    if patient.breasts and 0.35 < level < 0.85:
        for side in (-1, 1):
            breast = canvas.ellipse(side * a * 0.47, -b * 0.80, a * 0.36, patient.breasts + 8)
            body = smooth_union(body, breast, radius_mm=14.0)
    canvas.fill(body, 25.0)
    septa = canvas.strands(9.0, 0.10) * np.clip(canvas.noise(40.0), 0, 1)
    canvas.fill(body + 2.2, FAT_HU + 55 * septa + 5 * canvas.noise(14.0))
    if patient.breasts and 0.35 < level < 0.85:
        glands = (canvas.noise(12.0) > 0.9) * np.exp(-((canvas.y + b) ** 2) / 900)
        canvas.hu += canvas.cover(body + 8) * (canvas.hu < -60) * glands * 110
    # The wall is thick at the back and, high up, at the shoulders and in front.
    high = max(0.0, 0.6 - level)
    thick = 15 + 22 * np.clip(canvas.y / b, 0, 1) ** 2 + 26 * high * np.abs(canvas.x / a)
    thick = thick + 16 * high * np.clip(-canvas.y / b, 0, 1) + 3.5 * canvas.noise(35.0)
    wall = np.maximum(cage - thick, body + 0.45 * fat + 2.5)
    planes = canvas.strands(22.0, 0.07) + 0.6 * canvas.strands(10.0, 0.06)
    canvas.fill(wall, MUSCLE_HU + 4 * canvas.noise(6.0) - 120 * np.clip(planes, 0, 1), edge_mm=1.5)
    for side in (-1, 1):  # erector spinae
        canvas.stamp(side * 29, patient.half_depth - fat * 0.6 - 25, 25, 17, MUSCLE_HU, edge_mm=2)
    canvas.fill(cage - 1.5, MUSCLE_HU - 20, edge_mm=1.5)  # intercostals and pleura
    canvas.fill(cage + 1.5, FAT_HU + 14 + 22 * canvas.strands(8.0, 0.12))


def _domes(
    canvas: Canvas, patient: Patient, level: float, cage_a: float, cage_b: float
) -> list[Field]:
    """Liver (image left) and the left dome (spleen, stomach), growing below the diaphragm."""
    found = []
    for side, begins in ((-1, 0.78), (1, 0.84)):
        grown = (level - begins) / 0.30
        if grown <= 0:
            found.append(np.full_like(canvas.hu, 1e3))
            continue
        reach = math.sqrt(min(1.0, grown) * (2 - min(1.0, grown)))
        found.append(
            canvas.ellipse(
                side * cage_a * (0.50 - 0.06 * reach),
                -cage_b * 0.06,
                cage_a * 0.62 * reach,
                cage_b * 1.02 * reach,
                degrees=side * 8,
                square=0.15,
            )
        )
    return found


def _heart_shape(
    canvas: Canvas, patient: Patient, level: float, cage_a: float, cage_b: float
) -> Field:
    bulge = math.exp(-(((level - 0.74) / 0.17) ** 2))
    if bulge < 0.15:
        return np.full_like(canvas.hu, 1e3)
    return canvas.ellipse(
        17,
        -cage_b * 0.30,
        cage_a * 0.44 * patient.heart * bulge,
        cage_b * 0.50 * patient.heart * math.sqrt(bulge),
        degrees=28,
    )


def _lungs(
    canvas: Canvas,
    patient: Patient,
    level: float,
    cage: Field,
    column: float,
    organs: list[Field],
) -> Field:
    """The cage without the mediastinum and what bulges into it; gives the lungs' cover."""
    width = 23 + 12 * math.exp(-(((level - 0.45) / 0.2) ** 2))
    middle = canvas.ellipse(2, -6, width, column + 26, square=0.3)
    middle = smooth_union(middle, canvas.ellipse(0, column - 2, 27, 24), radius_mm=16.0)
    waist = canvas.ellipse(3, column * 0.10, width + 11, 24)
    middle = smooth_union(middle, waist, radius_mm=12.0)
    for organ in organs:
        middle = smooth_union(middle, organ - 3.0, radius_mm=6.0)
    lungs = -smooth_union(-(cage + 3.0), middle, radius_mm=9.0)
    density = patient.lung_hu + 40 * np.clip(canvas.y / 90, -1, 1) + 14 * canvas.noise(25.0)
    density = density + 20 * canvas.noise(4.0) + 12 * canvas.noise(2.2)
    if patient.emphysema:
        density = density - patient.emphysema * np.clip(canvas.noise(9.0) - 0.4, 0, 1)
    cover = canvas.fill(lungs, np.maximum(density, -985).astype(np.float32), edge_mm=1.2)
    for side in (-1, 1):  # the oblique fissures
        line = canvas.y - side * 0.16 * canvas.x - (level - 0.55) * -130 - 10
        near = np.clip(1 - np.abs(line) / 1.0, 0, 1) * cover * (side * canvas.x > 0)
        canvas.hu += near * 130
    return cover


def _vessels(canvas: Canvas, patient: Patient, level: float, lungs: Field, cage_a: float) -> None:
    """Trees of arteries and veins from each hilum, bronchi beside them, cut vessels, nodules."""
    rng = canvas.rng
    strength = math.exp(-(((level - 0.55) / 0.35) ** 2))
    for side in (-1, 1):
        hilum = (side * 36.0, 4.0)
        for _ in range(5):
            heading = rng.uniform(-1.5, 1.5) if side > 0 else math.pi + rng.uniform(-1.5, 1.5)
            radius = rng.uniform(2.0, 4.8) * (0.45 + 0.55 * strength)
            _branch(canvas, hilum, heading, radius, rng.uniform(12, 24), lungs, patient.blood_hu)
        for _ in range(34):  # pieces that enter the slice and leave it again
            x, y = side * rng.uniform(30, cage_a), rng.uniform(-95, 95)
            heading = math.atan2(y - hilum[1], x - hilum[0]) + rng.normal(0, 0.45)
            radius = 0.5 + 1.1 * rng.uniform() ** 2
            _branch(canvas, (x, y), heading, radius, rng.uniform(5, 15), lungs, patient.blood_hu)
        for _ in range(3):
            x = side * rng.uniform(38, 62)
            y, radius = rng.uniform(-22, 28), rng.uniform(1.8, 3.6) * strength
            canvas.stamp(x, y, radius + 1.3, radius + 1.3, -80, edge_mm=1.0)
            canvas.stamp(x, y, radius, radius, -960, edge_mm=0.8)
    for _ in range(170):
        x, y = rng.uniform(-cage_a, cage_a), rng.uniform(-95, 95)
        radius = 0.45 + 2.3 * rng.uniform() ** 4 * max(0.3, 1.1 - abs(abs(x) - 40) / 80)
        canvas.stamp(
            x, y, radius * rng.uniform(1, 1.9), radius, patient.blood_hu,
            degrees=rng.uniform(0, 180), within=lungs,
        )  # fmt: skip
    for _ in range(patient.nodules):
        x, y = rng.uniform(40, cage_a - 14) * rng.choice((-1, 1)), rng.uniform(-50, 60)
        radius = rng.uniform(1.8, 6.5)
        canvas.stamp(x, y, radius, radius * rng.uniform(0.75, 1), 35, edge_mm=1.5, within=lungs)


def _branch(
    canvas: Canvas,
    start: tuple[float, float],
    heading: float,
    radius: float,
    length: float,
    lungs: Field,
    hu: float,
) -> None:
    if radius < 0.5 or length < 3.5:
        return
    rng = canvas.rng
    end = (start[0] + length * math.cos(heading), start[1] + length * math.sin(heading))
    bend = rng.uniform(-0.16, 0.16)
    middle = (
        (start[0] + end[0]) / 2 - length * bend * math.sin(heading),
        (start[1] + end[1]) / 2 + length * bend * math.cos(heading),
    )
    canvas.tube(start, middle, radius, hu, within=lungs)
    canvas.tube(middle, end, radius * 0.9, hu, within=lungs)
    for side in (-1, 1):
        if rng.uniform() < 0.66:  # the others leave the plane
            _branch(
                canvas, end, heading + side * rng.uniform(0.2, 0.75),
                radius * rng.uniform(0.55, 0.82), length * rng.uniform(0.6, 0.95), lungs, hu,
            )  # fmt: skip


def _mediastinum(
    canvas: Canvas, patient: Patient, level: float, heart: Field, cage_b: float, column: float
) -> None:
    """Heart, great vessels, airway and gullet."""
    blood = patient.blood_hu
    rng = canvas.rng
    canvas.fill(heart, FAT_HU + 15, edge_mm=2.0)
    cover = canvas.fill(heart + 5.5, 48.0 + 3 * canvas.noise(8.0), edge_mm=2.0)
    if blood > 100:  # chambers show only where the blood is enhanced
        for cx, cy, a, b, part in (
            (2, -8, 17, 22, 0.85),
            (32, 2, 16, 24, 1.0),
            (16, 20, 22, 13, 1),
        ):
            canvas.stamp(cx, cy - cage_b * 0.25, a * patient.heart, b * patient.heart,
                         blood * part, degrees=28, edge_mm=3, within=cover)  # fmt: skip
    if level < 0.34:  # branches of the arch
        for cx, cy, radius in ((-14, -14, 6), (4, -18, 4.5), (15, -8, 5), (-22, -24, 7)):
            canvas.stamp(cx, cy, radius, radius, blood, edge_mm=1.5)
    elif level < 0.44:  # the arch itself
        canvas.stamp(11, -8, 14, 36, blood, degrees=-28, square=0.3, edge_mm=1.5)
        canvas.stamp(-20, -20, 9, 11, blood * 0.95, edge_mm=1.5)
    elif level < 0.98:
        canvas.stamp(20, column - 12, 12.5, 12.5, blood, edge_mm=1.5)  # descending aorta
    else:
        canvas.stamp(9, column - 27, 11, 11, blood, edge_mm=1.5)
    if 0.44 <= level < 0.66:  # ascending aorta, vena cava, pulmonary trunk and its branches
        canvas.stamp(-8, -34, 16, 17, blood, edge_mm=1.5)
        canvas.stamp(-31, -22, 8, 11, blood * 0.95, edge_mm=1.5)
        canvas.stamp(20, -30, 14, 17, blood * 1.05, degrees=25, edge_mm=1.5)
        canvas.stamp(-2, -6, 33, 9, blood * 1.05, degrees=-12, edge_mm=2)
    if level < 0.46:
        canvas.stamp(-3, 10, 10.5, 9.5, -20, edge_mm=1)
        canvas.stamp(-3, 10, 8.8, 7.8, -985, edge_mm=1)
    elif level < 0.66:
        for side in (-1, 1):
            reach = 9 + 90 * (level - 0.46)
            canvas.stamp(side * reach - 3, 11, 8.5, 6.5, -20, degrees=side * 22, edge_mm=1)
            canvas.stamp(side * reach - 3, 11, 7.0, 5.0, -980, degrees=side * 22, edge_mm=1)
    if level < 0.98:
        canvas.stamp(4, column - 31, 8, 5.5, 38, edge_mm=1.5)  # oesophagus
        if rng.uniform() < 0.5:
            canvas.stamp(4, column - 32, 2.2, 1.6, -700, edge_mm=1.5)
        canvas.stamp(-9, column - 25, 3.5, 3.5, blood * 0.9, edge_mm=1)  # azygos
    for _ in range(5):  # lymph nodes
        canvas.stamp(rng.uniform(-26, 28), rng.uniform(-28, 14), rng.uniform(2, 4.5), 2.5, 40)
    if rng.uniform() < 0.4:  # calcified plaque
        canvas.stamp(20 + rng.uniform(-9, 9), column - 22, 3.2, 1.3, 600, edge_mm=1)


def _abdomen(
    canvas: Canvas,
    patient: Patient,
    level: float,
    organs: list[Field],
    cage: Field,
    cage_a: float,
    cage_b: float,
) -> None:
    """Liver with its vessels, spleen, stomach with gas over fluid, kidneys, loops of bowel."""
    rng, blood = canvas.rng, patient.blood_hu
    inside = cage + 3.0
    raised = 45 if blood > 100 else 0
    liver = np.maximum(organs[0], inside)
    cover = canvas.fill(liver + 1, 58.0 + raised + 3 * canvas.noise(7.0), edge_mm=1.5)
    if level > 0.86:
        for _ in range(9):
            start = (rng.uniform(-0.7, -0.15) * cage_a, rng.uniform(-0.5, 0.5) * cage_b)
            _branch(canvas, start, rng.uniform(0, 6.3), rng.uniform(2, 4.5), 22,
                    cover, 42 if blood < 100 else 150)  # fmt: skip
    left = np.maximum(organs[1], inside)
    room = canvas.fill(left + 1, FAT_HU + 10 + 25 * canvas.strands(9.0, 0.12), edge_mm=1.5)
    if level > 0.9:
        spleen = np.maximum(
            left + 2, canvas.ellipse(cage_a * 0.72, cage_b * 0.36, 26, 42, degrees=25)
        )
        canvas.fill(spleen, 52.0 + raised * 1.3 + 3 * canvas.noise(6.0), edge_mm=1.5)
        cx, cy = cage_a * 0.36, -cage_b * 0.30
        stomach = np.maximum(left + 2, canvas.ellipse(cx, cy, 38, 31, degrees=-24))
        canvas.fill(stomach, 45.0, edge_mm=1.5)
        full = canvas.fill(stomach + 4, 18.0 + 14 * canvas.noise(7.0), edge_mm=1.5)
        gas = np.clip((cy + rng.uniform(-16, 4) - canvas.y) / canvas.pixel_mm, 0, 1) * full
        canvas.hu += gas * (-960 - canvas.hu)
    if level > 1.02:
        for side in (-1, 1):
            cx, cy = side * cage_a * 0.44, cage_b * 0.48
            canvas.stamp(cx, cy, 33, 36, FAT_HU, edge_mm=2)
            canvas.stamp(cx, cy, 24, 29, 34 + 2.6 * raised, degrees=side * -25, edge_mm=1.5)
            canvas.stamp(cx - side * 7, cy - 2, 9, 15, FAT_HU + 20, degrees=side * -25, edge_mm=3)
        for _ in range(6):
            cx, cy = rng.uniform(-0.1, 0.6) * cage_a, rng.uniform(-0.45, 0.05) * cage_b
            radius = rng.uniform(8, 14)
            canvas.stamp(cx, cy, radius, radius * 0.85, 40, edge_mm=1.5, within=room)
            canvas.stamp(cx, cy, radius - 3, radius - 4.5, rng.choice((-800.0, 15.0, 25.0)),
                         edge_mm=1.5, within=room)  # fmt: skip
