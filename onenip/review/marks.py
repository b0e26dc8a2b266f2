"""Score maps as they are kept, and masks as people draw them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from onenip.errors import DataError
from onenip.images import load_mask


def save_map(path: Path | BytesIO, score_map: NDArray[np.float32], pixel_threshold: float) -> None:
    """Write a map with its pixel threshold; half precision, which no picture shows."""
    np.savez_compressed(
        path, map=score_map.astype(np.float16), pixel_threshold=np.float32(pixel_threshold)
    )


def load_map(path: Path | BytesIO) -> tuple[NDArray[np.float32], float]:
    """The map [h, w] float32 of a file, and its pixel threshold; `resize_map` brings it to the image's size.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        with np.load(path) as found:
            return found["map"].astype(np.float32), float(found["pixel_threshold"])
    except (OSError, ValueError, KeyError, EOFError, MemoryError, BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: no map can be read: {error}") from error


def read_mask(mask: NDArray[np.bool_] | bytes) -> NDArray[np.bool_]:
    """A mask [H, W] bool, of an array or of an image file's bytes.

    Raises:
        ImageError: if the bytes are no mask.
    """
    return load_mask(mask) if isinstance(mask, bytes) else np.asarray(mask, dtype=bool)


def draw_boxes(boxes: Sequence[Sequence[int]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask [H, W] bool of boxes.

    Args:
        boxes: (x, y, width, height) in px.
        size: (H, W) in px.

    Raises:
        DataError: if a box does not lie in the image.
    """
    picture = Image.new("L", (size[1], size[0]))
    for box in boxes:
        if len(box) != 4 or not _lies_in(box, size):
            raise DataError(
                f"box {list(box)}: not x, y, width, height inside {size[1]}x{size[0]} px"
            )
        x, y, width, height = box
        ImageDraw.Draw(picture).rectangle((x, y, x + width - 1, y + height - 1), fill=255)
    return np.asarray(picture) > 0


def _lies_in(box: Sequence[int], size: tuple[int, int]) -> bool:
    x, y, width, height = box
    return (
        min(x, y) >= 0 and min(width, height) > 0 and x + width <= size[1] and y + height <= size[0]
    )
