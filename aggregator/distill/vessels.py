"""Vessel trees that fill an organ, and tubes drawn on a section.

A tree grows as in Wang, Bassingthwaighte et al. and Kitaoka et al. (J Appl Physiol 87 (1999) 2207):
points that must be supplied are halved again and again, and a branch runs towards each half. Radii
follow Murray's law, r^m = r1^m + r2^m, with m near 3.
"""

import numpy as np
from numpy.typing import NDArray

from aggregator.distill.section import Section
from aggregator.distill.texture import Field

Segments = NDArray[np.float32]
"""(M, 7): start x, y, z, end x, y, z, radius; mm."""

MURRAY = 2.6
STEP = 0.55
"""Share of the way to its points' centre that a branch runs before it divides."""


def grow_tree(
    root: NDArray[np.float64],
    points: NDArray[np.float64],
    *,
    halvings: int,
    twig_mm: float,
    random: np.random.Generator,
) -> Segments:
    """Segments of a tree from ``root`` (3,) to 2^``halvings`` of ``points`` (N, 3).

    ``twig_mm`` is the radius of a branch to one point. Too few points are used more than once.
    """
    count = 2**halvings
    chosen = np.resize(random.permutation(len(points)), count)
    groups = points[chosen][None]  # (G, n, 3): G groups of n points, all of one generation
    starts = np.asarray(root, np.float64)[None]  # (G, 3)
    found = []
    while True:
        many = groups.shape[1]
        centre = groups.mean(axis=1)
        step = random.uniform(STEP - 0.1, STEP + 0.1, (len(groups), 1)) if many > 1 else 1.0
        way = centre - starts
        ends = starts + step * way
        ends = ends + random.normal(0, 0.1, way.shape) * np.abs(way).max(axis=1, keepdims=True)
        radius = twig_mm * many ** (1 / MURRAY) * np.exp(random.normal(0, 0.2, (len(groups), 1)))
        found.append(np.concatenate([starts, ends, radius], axis=1))
        if many == 1:
            return np.asarray(np.concatenate(found), np.float32)
        # Halved across the widest of four random directions: cheaper than the principal axis.
        axes = random.standard_normal((len(groups), 3, 4))
        axes /= np.linalg.norm(axes, axis=1, keepdims=True)
        along = (groups - centre[:, None]) @ axes  # (G, n, 4)
        widest = along.var(axis=1).argmax(axis=1)
        order = np.take_along_axis(along, widest[:, None, None], axis=2)[..., 0].argsort(axis=1)
        groups = np.take_along_axis(groups, order[..., None], axis=1).reshape(-1, many // 2, 3)
        starts = np.repeat(ends, 2, axis=0)


def tube_cover(section: Section, segments: Segments, *, widen_mm: float = 0.0) -> Field:
    """Share of each pixel inside any of the tubes (H, W); thin ones fade with their width."""
    cover = np.zeros((len(section.y_mm), len(section.x_mm)), np.float32)
    if len(segments) == 0:
        return cover
    pixel = section.pixel_mm
    radius = segments[:, 6] + widen_mm
    low = np.minimum(segments[:, 2], segments[:, 5]) - np.maximum(radius, 0.5 * pixel)
    high = np.maximum(segments[:, 2], segments[:, 5]) + np.maximum(radius, 0.5 * pixel)
    near = segments[(low < section.z) & (high > section.z)]
    x0, y0 = float(section.x_mm[0]), float(section.y_mm[0])
    for ax, ay, az, bx, by, bz, thin in near.tolist():
        r = thin + widen_mm
        reach = r + pixel
        left = max(int((min(ax, bx) - reach - x0) / pixel), 0)
        right = int((max(ax, bx) + reach - x0) / pixel) + 2
        top = max(int((min(ay, by) - reach - y0) / pixel), 0)
        bottom = int((max(ay, by) + reach - y0) / pixel) + 2
        if right <= left or bottom <= top:
            continue
        dx = section.x_mm[None, left:right] - ax
        dy = section.y_mm[top:bottom, None] - ay
        dz = section.z - az
        ux, uy, uz = bx - ax, by - ay, bz - az
        length = ux * ux + uy * uy + uz * uz + 1e-6
        along = np.clip((dx * ux + dy * uy + dz * uz) / length, 0, 1)
        gap = np.sqrt((dx - along * ux) ** 2 + (dy - along * uy) ** 2 + (dz - along * uz) ** 2)
        # A tube thinner than a pixel fills 2r of its width.
        inside = np.clip(0.5 + (r - gap) / pixel, 0, 1) * min(1.0, 0.3 + 1.4 * r / pixel)
        patch = cover[top:bottom, left:right]
        np.maximum(patch, inside, out=patch)
    return cover
