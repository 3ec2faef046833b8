"""Tiles: an unbiased part of a set's loss, for a part of its cost.

An image is divided into equal squares that cover it once. A step looks at one random tile of every
image, cut out with a margin, so that the network sees what it would see around it; only the tile's
own pixels count. Every pixel is as likely as any other, so the expectation of the loss, and of its
gradient, is that of whole images: exactly so where the margin holds the network's receptive field.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

TILE_PX = 64
MARGIN_PX = 8
"""Reaches as far as eight 3x3 layers see."""

Tiles = list[tuple[int, int]]
"""Row and column of one tile of every image."""


@dataclass(frozen=True)
class Tiling:
    """A division of square images into ``count`` x ``count`` tiles, seen through larger windows."""

    size_px: int
    count: int
    edge_px: int
    window_px: int

    @property
    def weight(self) -> float:
        """What a tile's summed error is multiplied by to estimate a whole image's mean error."""
        return self.count**2 / self.size_px**2

    def sweep(self, images: int, *, generator: torch.Generator) -> list[Tiles]:
        """Tiles (row, column), one an image, for as many steps as show every tile once.

        Each image goes through its tiles in a random order of its own.
        """
        places = self.count**2
        order = torch.rand(images, places, generator=generator).argsort(dim=1)
        return [
            [divmod(place, self.count) for place in order[:, step].tolist()]
            for step in range(places)
        ]

    def cut(self, stack: Tensor, tiles: Tiles) -> Tensor:
        """The windows (N, C, w, w) around ``tiles``, one of each image of (N, C, S, S)."""
        if self.count == 1:
            return stack
        windows = []
        for image, (row, column) in zip(stack, tiles, strict=True):
            top, left = self._corner(row), self._corner(column)
            edge = self.window_px
            windows.append(image[:, top : top + edge, left : left + edge])
        return torch.stack(windows)

    def inside(self, tiles: Tiles, *, device: torch.device) -> Tensor:
        """Which pixels of the windows are the tiles' own: ones and zeros, (N, 1, w, w)."""
        along = torch.zeros(len(tiles), 2, self.window_px)
        for number, tile in enumerate(tiles):
            for axis, place in enumerate(tile):
                start = place * self.edge_px
                stop = min(start + self.edge_px, self.size_px)
                corner = self._corner(place)
                along[number, axis, start - corner : stop - corner] = 1
        return (along[:, 0, :, None] * along[:, 1, None, :])[:, None].to(device)

    def _corner(self, place: int) -> int:
        most = self.size_px - self.window_px
        return min(max(place * self.edge_px - MARGIN_PX, 0), most)


def tiling(size_px: int) -> Tiling:
    """The division of images of ``size_px``; those below two tiles stay whole."""
    count = max(1, size_px // TILE_PX)
    edge = -(-size_px // count)
    # In a row of two, each has the image's own border on one side.
    margins = min(count - 1, 2)
    return Tiling(size_px, count, edge, min(edge + margins * MARGIN_PX, size_px))
