"""A canvas in millimetres: soft-edged shapes and smooth noise, for drawing tissue in HU."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
"""One float32 number a pixel, shape (S, S)."""


@dataclass
class Canvas:
    """An axial slice being drawn. ``x`` grows to the image's right, ``y`` downwards, in mm.

    Both are 0 at ``centre`` (mm from the middle of the field of view) and bent by a smooth random
    field, so that no shape stays geometric.
    """

    x: Field
    y: Field
    hu: Field
    pixel_mm: float
    centre: tuple[float, float]
    rng: np.random.Generator

    def noise(self, scale_mm: float) -> Field:
        """Smooth Gaussian noise of unit variance with features of about ``scale_mm``."""
        size = self.hu.shape[0]
        nodes = max(4, math.ceil(size * self.pixel_mm / scale_mm) + 3)
        at = np.linspace(1, nodes - 2, size, dtype=np.float32)[:, None] - np.arange(nodes)
        weights = np.exp(-1.5 * at * at).astype(np.float32)
        weights /= np.sqrt((weights**2).sum(axis=1, keepdims=True))
        grid = self.rng.standard_normal((nodes, nodes), dtype=np.float32)
        return np.asarray(weights @ grid @ weights.T, np.float32)

    def strands(self, scale_mm: float, width: float) -> Field:
        """Thin winding lines in [0, 1]: the zero crossings of smooth noise."""
        return np.clip(1 - np.abs(self.noise(scale_mm)) / width, 0, 1)

    def ellipse(
        self, cx: float, cy: float, a: float, b: float, *, degrees: float = 0.0, square: float = 0.0
    ) -> Field:
        """About the signed distance in mm to an ellipse with half axes ``a`` and ``b``.

        ``square`` from 0 to 1 makes it more of a rounded rectangle.
        """
        return _ellipse(self.x - cx, self.y - cy, a, b, degrees=degrees, square=square)

    def cover(self, distance: Field, *, edge_mm: float = 0.0) -> Field:
        """How much of each pixel lies inside, in [0, 1]; the border is ``edge_mm`` wide."""
        return np.asarray(np.clip(0.5 - distance / max(edge_mm, self.pixel_mm), 0, 1), np.float32)

    def fill(self, distance: Field, hu: Field | float, *, edge_mm: float = 0.0) -> Field:
        """Paints the inside; gives what was covered."""
        cover = self.cover(distance, edge_mm=edge_mm)
        self.hu += cover * (hu - self.hu)
        return cover

    def stamp(
        self,
        cx: float,
        cy: float,
        a: float,
        b: float,
        hu: float,
        *,
        degrees: float = 0.0,
        square: float = 0.0,
        edge_mm: float = 0.0,
        within: Field | None = None,
    ) -> None:
        """Paints a small ellipse, touching its surroundings only: many of them stay cheap."""
        window = self._window(cx, cy, max(a, b) + edge_mm)
        if window is None:
            return
        distance = _ellipse(
            self.x[window] - cx, self.y[window] - cy, a, b, degrees=degrees, square=square
        )
        self._blend(window, distance, hu, edge_mm, within)

    def tube(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        radius_mm: float,
        hu: float,
        *,
        within: Field | None = None,
    ) -> None:
        """Paints a straight piece of a vessel."""
        (x0, y0), (x1, y1) = start, end
        length = math.hypot(x1 - x0, y1 - y0)
        window = self._window((x0 + x1) / 2, (y0 + y1) / 2, length / 2 + radius_mm)
        if window is None or length == 0:
            return
        dx, dy = self.x[window] - x0, self.y[window] - y0
        along = np.clip((dx * (x1 - x0) + dy * (y1 - y0)) / length**2, 0, 1)
        dx, dy = dx - along * (x1 - x0), dy - along * (y1 - y0)
        distance = np.asarray(np.sqrt(dx * dx + dy * dy) - radius_mm, np.float32)
        self._blend(window, distance, hu, 0.0, within)

    def _window(self, cx: float, cy: float, reach: float) -> tuple[slice, slice] | None:
        size = self.hu.shape[0]
        reach = reach + 12.0  # the bend moves a shape by less than this
        cx, cy = cx + self.centre[0], cy + self.centre[1]
        low_x, high_x = ((cx + side * reach) / self.pixel_mm + size / 2 for side in (-1, 1))
        low_y, high_y = ((cy + side * reach) / self.pixel_mm + size / 2 for side in (-1, 1))
        columns = slice(max(0, int(low_x)), min(size, int(high_x) + 2))
        rows = slice(max(0, int(low_y)), min(size, int(high_y) + 2))
        empty = columns.start >= columns.stop or rows.start >= rows.stop
        return None if empty else (rows, columns)

    def _blend(
        self,
        window: tuple[slice, slice],
        distance: Field,
        hu: float,
        edge_mm: float,
        within: Field | None,
    ) -> None:
        cover = np.clip(0.5 - distance / max(edge_mm, self.pixel_mm), 0, 1)
        if within is not None:
            cover = cover * within[window]
        self.hu[window] += cover * (np.float32(hu) - self.hu[window])


def _ellipse(x: Field, y: Field, a: float, b: float, *, degrees: float, square: float) -> Field:
    if degrees:
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        x, y = x * cos + y * sin, y * cos - x * sin
    u, v = x * np.float32(1 / a), y * np.float32(1 / b)
    u *= u
    v *= v
    radius = np.sqrt(u + v)
    if square:
        u *= u
        v *= v
        radius += np.float32(square) * (np.sqrt(np.sqrt(u + v)) - radius)
    # Along the nearer axis the scale is that axis; in between, close to it.
    scale = np.sqrt(x * x + y * y) / np.maximum(radius, np.float32(1e-6))
    return np.asarray((radius - 1) * np.maximum(scale, min(a, b)), dtype=np.float32)


def millimetres(*, size_px: int, pixel_mm: float) -> tuple[Field, Field]:
    """The coordinates x (1, S) and y (S, 1) of the pixels, 0 in the middle."""
    axis = (np.arange(size_px, dtype=np.float32) - (size_px - 1) / 2) * np.float32(pixel_mm)
    return axis[None, :], axis[:, None]


def blank(
    *,
    size_px: int,
    pixel_mm: float,
    centre: tuple[float, float],
    bend_mm: float,
    rng: np.random.Generator,
) -> Canvas:
    """Air, with coordinates bent by less than ``bend_mm``."""
    shape = (size_px, size_px)
    x, y = millimetres(size_px=size_px, pixel_mm=pixel_mm)
    canvas = Canvas(
        np.broadcast_to(x - centre[0], shape).astype(np.float32),
        np.broadcast_to(y - centre[1], shape).astype(np.float32),
        np.full(shape, -1000, np.float32),
        pixel_mm,
        centre,
        rng,
    )
    for axis in (canvas.x, canvas.y):
        shift = 0.35 * canvas.noise(70.0) + 0.12 * canvas.noise(18.0)
        axis += np.float32(bend_mm) * np.clip(shift, -1, 1)
    return canvas


def smooth_union(first: Field, second: Field, *, radius_mm: float) -> Field:
    """The union of two shapes given by their distances, with a rounded seam."""
    mix = np.clip(0.5 + 0.5 * (second - first) / radius_mm, 0, 1)
    return np.asarray(second + mix * (first - second) - radius_mm * mix * (1 - mix), np.float32)
