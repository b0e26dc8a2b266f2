"""Where tiles lie in an image, and what their pixels weigh. Knows numpy only, so that an edge has it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FLOOR = 1e-3  # weight of a tile's very edge, above 0 so that the image's border has an owner


def list_tiles(
    size: tuple[int, int], tile_px: int, overlap: float
) -> list[tuple[int, int, int, int]]:
    """Boxes (y, x, height, width) that cover an image of (height, width) px, row by row.

    All have the same size and are spread evenly, so that none sticks out and none is a sliver.
    """
    rows, columns = (_place(side, min(tile_px, side), overlap) for side in size)
    height, width = min(tile_px, size[0]), min(tile_px, size[1])
    return [(y, x, height, width) for y in rows for x in columns]


def _place(side: int, tile: int, overlap: float) -> list[int]:
    stride = max(int(tile * (1 - overlap)), 1)
    count = -(-(side - tile) // stride) + 1
    return [round(at) for at in np.linspace(0, side - tile, count)]


def cut_tile(image: NDArray[np.uint8], box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """A copy of the pixels in a box: [height, width, 3] of [H, W, 3] uint8."""
    y, x, height, width = box
    return np.ascontiguousarray(image[y : y + height, x : x + width])


def weigh_tile(length: int) -> NDArray[np.float32]:
    """Raised-cosine weights of a tile's pixels: 1 in the middle, next to nothing at its edges."""
    place = (np.arange(length) + 0.5) / length
    return np.maximum(np.sin(np.pi * place) ** 2, _FLOOR).astype(np.float32)
