"""Score maps as they are kept, and masks as people draw them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from onenip.errors import DataError
from onenip.images import load_mask, read_size

_MAX_MAP_BYTES = 64 << 20  # of a map at a model's input size


class MarkError(DataError):
    """Boxes or a mask that do not fit their image."""


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
        with ZipFile(path) as packed:
            if sum(one.file_size for one in packed.infolist()) > _MAX_MAP_BYTES:
                raise ValueError(f"it unpacks to more than {_MAX_MAP_BYTES} bytes")
        with np.load(path) as found:
            score_map = found["map"].astype(np.float32)
            pixel_threshold = float(found["pixel_threshold"])
        if score_map.ndim != 2 or not (np.isfinite(score_map).all() and score_map.size):
            raise ValueError(f"its shape is {score_map.shape}, or not every value is a number")
        if not math.isfinite(pixel_threshold):
            raise ValueError("its threshold is no number")
    except (
        OSError, ValueError, TypeError, KeyError, EOFError, MemoryError, NotImplementedError,
        BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        name = path if isinstance(path, Path) else "a kept map"
        raise DataError(f"{name}: no map can be read: {error}") from error
    return score_map, pixel_threshold


def draw_marks(
    mask: NDArray[np.bool_] | bytes | None, boxes: Sequence[Sequence[int]], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """The mask [H, W] bool of what was marked on an image.

    Args:
        mask: of an array or of an image file's bytes; None: boxes say where.
        boxes: (x, y, width, height) in px.
        size: (H, W) of the image in px.

    Raises:
        MarkError: if they do not fit the image, or mark nothing.
    """
    if mask is None:
        found = draw_boxes(boxes, size)
    else:
        # a large mask is not decoded to find that it is of another image
        shape = read_size(mask) if isinstance(mask, bytes) else mask.shape
        if shape != size:
            raise MarkError(f"mask: {shape[1]}x{shape[0]} px, its image {size[1]}x{size[0]}")
        found = load_mask(mask) if isinstance(mask, bytes) else np.asarray(mask, dtype=bool)
    if not found.any():
        raise MarkError("mask: nothing is marked")
    return found


def draw_boxes(boxes: Sequence[Sequence[int]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask [H, W] bool of boxes.

    Args:
        boxes: (x, y, width, height) in px.
        size: (H, W) in px.

    Raises:
        MarkError: if a box does not lie in the image.
    """
    picture = Image.new("L", (size[1], size[0]))
    for box in boxes:
        if len(box) != 4 or not _lies_in(box, size):
            raise MarkError(
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
