"""Bones in an axial slice of the chest: a dense shell around textured marrow."""

import math

from deploy.demo.canvas import Canvas

CORTEX_HU = 780.0
EPIDURAL_HU = -21.0


def _bone(
    canvas: Canvas,
    cx: float,
    cy: float,
    a: float,
    b: float,
    marrow_hu: float,
    *,
    degrees: float = 0.0,
    cortex_mm: float = 1.8,
    square: float = 0.25,
) -> None:
    canvas.stamp(cx, cy, a, b, CORTEX_HU, degrees=degrees, square=square, edge_mm=1.0)
    if min(a, b) > cortex_mm + 0.6:
        canvas.stamp(cx, cy, a - cortex_mm, b - cortex_mm, marrow_hu,
                     degrees=degrees, square=square, edge_mm=1.2)  # fmt: skip


def draw_spine(canvas: Canvas, *, column: float, marrow_hu: float) -> None:
    """A vertebra with canal, arch and processes; its sponge is textured."""
    for side in (-1, 1):
        _bone(canvas, side * 27, column + 24, 15, 5, marrow_hu, degrees=side * 22)
        _bone(canvas, side * 14, column + 20, 5, 9, marrow_hu, degrees=side * 8)
    _bone(canvas, 0, column + 40, 4.0, 11, marrow_hu)
    for side in (-1, 1):
        _bone(canvas, side * 9, column + 31, 11, 4, marrow_hu, degrees=side * 38)
    canvas.stamp(0, column + 21, 10, 8.5, EPIDURAL_HU, edge_mm=1)
    canvas.stamp(0, column + 21, 6, 5, 35, edge_mm=2)
    body = canvas.ellipse(0, column, 18.5, 14.5, square=0.3)
    canvas.fill(body, CORTEX_HU * 0.75, edge_mm=1.5)
    sponge = marrow_hu + 55 * canvas.noise(2.2) + 35 * canvas.noise(5.0)
    canvas.fill(body + 1.6, sponge, edge_mm=1.5)


def draw_ribs(
    canvas: Canvas, *, level: float, cage_a: float, cage_b: float, marrow_hu: float
) -> None:
    """Each rib crosses a slice obliquely: an arc of the cage; sternum and shoulder blades too."""
    rng = canvas.rng
    for side in (-1, 1):
        angle = 60 + rng.uniform(-8, 8)
        while angle > -62:
            length = rng.uniform(10, 24)
            theta = math.radians(angle)
            # A point of the superellipse's ring, 4 mm outside the pleura, and its tangent there.
            cos, sin = math.cos(theta), math.sin(theta)
            radius = ((abs(cos) / (cage_a + 4)) ** 2.3 + (abs(sin) / (cage_b + 4)) ** 2.3) ** -0.435
            x, y = side * radius * cos, radius * sin - 3
            slope = math.degrees(
                math.atan2(-(abs(cos) / cage_a) ** 1.3 / cage_a,
                           math.copysign((abs(sin) / cage_b) ** 1.3 / cage_b, sin))
            )  # fmt: skip
            soft = angle < -40  # cartilage near the sternum
            _bone(canvas, x, y, length, rng.uniform(3.8, 5.0),
                  150 if soft else marrow_hu, degrees=side * slope,
                  cortex_mm=0.5 if soft else 1.5, square=0.4)  # fmt: skip
            angle -= rng.uniform(20, 30) * (150 / radius) ** 0.5
    if level < 0.85:
        _bone(canvas, rng.normal(0, 1.5), -cage_b - 6, 17, 6, marrow_hu * 0.7)
    if level < 0.62:
        for side in (-1, 1):
            x, y = side * cage_a * 0.80, cage_b * 0.80 + 10
            _bone(canvas, x, y, 36 - 26 * level, 3.6, marrow_hu, degrees=side * -33,
                  cortex_mm=1.4)  # fmt: skip
