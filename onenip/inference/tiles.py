"""Positions of tiles in an image, and the blending of their maps. Imports no torch, for the edge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onenip.detector.prediction import resize_map
from onenip.errors import DataError

Box = tuple[int, int, int, int]  # y, x, height, width in px

# tiles [height, width, 3] uint8 to the map [h, w] and the score of each
ScoreTiles = Callable[[Iterator[NDArray[np.uint8]]], Iterable[tuple[NDArray[np.float32], float]]]

_FLOOR = 1e-3  # weight at a tile's edge; above 0, so that the image's border gets a value


@dataclass(frozen=True)
class Tiling:
    """Size of tiles and their overlap.

    Attributes:
        tile_px: side of a tile in px, cut off at the image's own sides.
        overlap: fraction of a tile that it shares with the next one at least, 0..0.75.

    Raises:
        DataError: if one is out of range.
    """

    tile_px: int
    overlap: float

    def __post_init__(self) -> None:
        if not (self.tile_px >= 1 and 0 <= self.overlap <= 0.75):
            raise DataError(
                f"tiles of {self.tile_px} px with overlap {self.overlap}: not 1 px up, 0..0.75"
            )


def score_in_tiles(
    image: NDArray[np.uint8], score_tiles: ScoreTiles, tiling: Tiling
) -> tuple[NDArray[np.float32], float]:
    """Blended map [H, W] of an image's tiles at its own size, and the score of the worst tile.

    Args:
        image: [H, W, 3] uint8.
        score_tiles: gives the map and the score of each tile, in order.
        tiling: size of the tiles and their overlap.
    """
    size = (image.shape[0], image.shape[1])
    boxes = list_tiles(size, tiling.tile_px, tiling.overlap)
    total, weights = np.zeros(size, np.float32), np.zeros(size, np.float32)
    score = -np.inf
    scored = score_tiles(cut_tile(image, box) for box in boxes)
    for (y, x, height, width), (values, own) in zip(boxes, scored, strict=True):
        window = np.outer(weigh_tile(height), weigh_tile(width))
        total[y : y + height, x : x + width] += window * resize_map(values, (height, width))
        weights[y : y + height, x : x + width] += window
        score = max(score, own)
    return total / weights, score


def list_tiles(size: tuple[int, int], tile_px: int, overlap: float) -> list[Box]:
    """Boxes that cover an image of (height, width) px, row by row.

    All have the same size and are spread evenly, so that none sticks out and none is a sliver.
    """
    rows, columns = (_place(side, min(tile_px, side), overlap) for side in size)
    height, width = min(tile_px, size[0]), min(tile_px, size[1])
    return [(y, x, height, width) for y in rows for x in columns]


def _place(side: int, tile: int, overlap: float) -> list[int]:
    stride = max(int(tile * (1 - overlap)), 1)
    count = -(-(side - tile) // stride) + 1
    return [round(at) for at in np.linspace(0, side - tile, count)]


def cut_tile(image: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """A copy of the pixels in a box: [height, width, 3] of [H, W, 3] uint8."""
    y, x, height, width = box
    return np.ascontiguousarray(image[y : y + height, x : x + width])


def weigh_tile(length: int) -> NDArray[np.float32]:
    """Raised-cosine weights of a tile's pixels: 1 in the middle, next to nothing at its edges."""
    place = (np.arange(length) + 0.5) / length
    return np.maximum(np.sin(np.pi * place) ** 2, _FLOOR).astype(np.float32)
