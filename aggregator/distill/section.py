"""One axial plane through a virtual person: tissues are painted on it, shape by shape.

Shapes are signed distances in mm, negative inside, right near their edge; x runs to the person's
left (right in the image), y to the back, z to the head. Coordinates are bent by a smooth field that
belongs to the person, so that no outline is a perfect curve.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from aggregator.distill.texture import Field, power_law_noise, smooth_noise

BEND_MM = 60.0
"""Lattice spacing of the field that bends outlines."""


Place = Sequence[float] | NDArray[np.float64]
"""x, y, z in mm: a point, or radii along the axes."""


@dataclass
class Section:
    """A plane at height ``z``: image (H, W) and the grain of its texture, in stored units."""

    x_mm: Field  # (W,), straight
    y_mm: Field  # (H,), straight
    z: float
    pixel_mm: float
    seed: tuple[int, ...]
    look: Mapping[str, tuple[float, float]]  # tissue -> value, grain
    textured: bool
    bend: float = 4.0  # mm, standard deviation
    x: Field = field(init=False)  # (H, W), bent
    y: Field = field(init=False)
    image: Field = field(init=False)
    grain: Field = field(init=False)

    def __post_init__(self) -> None:
        shape = (len(self.y_mm), len(self.x_mm))
        self.x = self.x_mm[None, :] + self.bend * self.noise(901, BEND_MM)
        self.y = self.y_mm[:, None] + self.bend * self.noise(902, BEND_MM)
        self.image = np.full(shape, self.look["air"][0], np.float32)
        self.grain = np.zeros(shape, np.float32)

    def noise(self, channel: int, scale_mm: float, z_scale: float = 1.0) -> Field:
        """A smooth field of unit variance; a channel is one field through all slices."""
        return smooth_noise(
            self.x_mm, self.y_mm, self.z,
            scale_mm=scale_mm, seed=(*self.seed, channel), z_scale=z_scale,
        )  # fmt: skip

    def power_law(self, channel: int, exponent: float, octaves: int = 5) -> Field:
        """A field of unit variance with a power-law spectrum down to the pixel."""
        return power_law_noise(
            self.x_mm, self.y_mm, self.z, exponent=exponent,
            finest_mm=1.5, octaves=octaves, seed=(*self.seed, channel),
        )  # fmt: skip

    def cover(self, distance: Field) -> Field:
        """Share of each pixel that lies inside."""
        return np.asarray(np.clip(0.5 - distance / self.pixel_mm, 0.0, 1.0), np.float32)

    def paint(
        self, distance: Field, tissue: str, *, within: Field | None = None, opacity: float = 1.0
    ) -> Field:
        """Paints a tissue inside a shape, and inside ``within`` where given; gives its cover."""
        cover = self.cover(distance if within is None else np.maximum(distance, within)) * opacity
        value, grain = self.look[tissue]
        self.image += cover * (value - self.image)
        self.grain += cover * (grain - self.grain)
        return cover

    def ellipse(
        self, cx: float, cy: float, rx: float, ry: float, *, power: float = 2.0, degrees: float = 0
    ) -> Field:
        """Signed distance to a (super)ellipse; one without a radius is everywhere far away."""
        if rx <= 0 or ry <= 0:
            return np.full(self.x.shape, 1e3, np.float32)
        dx, dy = self.x - cx, self.y - cy
        if degrees:
            cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
            dx, dy = dx * cosine + dy * sine, dy * cosine - dx * sine
        return ellipse_distance(dx / rx, dy / ry, rx, ry, power=power)

    def ellipsoid(
        self,
        centre: Place,
        radii: Place,
        *,
        power: float = 2.0,
        degrees: float = 0,
    ) -> Field:
        """The cut through an ellipsoid, turned about the z axis."""
        share = 1 - ((self.z - centre[2]) / radii[2]) ** 2
        if share <= 0:
            return np.full(self.x.shape, 1e3, np.float32)
        scale = float(np.sqrt(share))
        return self.ellipse(
            centre[0], centre[1], radii[0] * scale, radii[1] * scale, power=power, degrees=degrees
        )

    def line(
        self, start: tuple[float, float], end: tuple[float, float], half_width: float
    ) -> Field:
        """Signed distance to a thick line with round ends in the plane."""
        ax, ay = end[0] - start[0], end[1] - start[1]
        along = ((self.x - start[0]) * ax + (self.y - start[1]) * ay) / max(ax * ax + ay * ay, 1e-6)
        along = np.clip(along, 0, 1)
        gap = np.hypot(self.x - start[0] - along * ax, self.y - start[1] - along * ay)
        return np.asarray(gap - half_width, np.float32)

    def tube(
        self,
        start: Place,
        end: Place,
        radius: float,
        end_radius: float | None = None,
    ) -> Field:
        """Signed distance to a tube in space, cut by the plane."""
        a, b = np.asarray(start, np.float64), np.asarray(end, np.float64)
        last = radius if end_radius is None else end_radius
        if not min(a[2], b[2]) - max(radius, last) < self.z < max(a[2], b[2]) + max(radius, last):
            return np.full(self.x.shape, 1e3, np.float32)
        axis = b - a
        dx, dy, dz = self.x - a[0], self.y - a[1], self.z - a[2]
        along = np.clip((dx * axis[0] + dy * axis[1] + dz * axis[2]) / (axis @ axis), 0, 1)
        gap: Field = (dx - along * axis[0]) ** 2 + (dy - along * axis[1]) ** 2
        gap += (dz - along * axis[2]) ** 2
        return np.asarray(np.sqrt(gap) - (radius + along * (last - radius)), np.float32)


def ellipse_distance(u: Field, v: Field, rx: float, ry: float, *, power: float = 2.0) -> Field:
    """Signed distance (mm, first order) to |u|^p + |v|^p = 1, u = x / rx and v = y / ry."""
    u, v = np.abs(u) + 1e-6, np.abs(v) + 1e-6
    if power == 2.0:
        rho = np.sqrt(u * u + v * v)
        slope = np.sqrt((u / rx) ** 2 + (v / ry) ** 2) / rho
    else:
        rho = (u**power + v**power) ** (1 / power)
        slope = np.sqrt((u ** (power - 1) / rx) ** 2 + (v ** (power - 1) / ry) ** 2)
        slope /= rho ** (power - 1)
    return np.asarray((rho - 1) / slope, np.float32)


def smooth_union(one: Field, other: Field, *, radius_mm: float) -> Field:
    """Both shapes as one, the crease between them filled to about ``radius_mm``."""
    share = np.clip(0.5 + 0.5 * (other - one) / radius_mm, 0, 1)
    mixed = other + share * (one - other) - radius_mm * share * (1 - share)
    return np.asarray(mixed, np.float32)
