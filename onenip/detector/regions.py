"""Defect regions of a map: connected pixels above the threshold, as boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_EIGHT_CONNECTED = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Region:
    """One connected defective region.

    Attributes:
        x: left edge of its box in px, origin top-left, at the image's own size.
        y: top edge of its box in px.
        width: of the box in px.
        height: of the box in px.
        area_px: pixels above the threshold.
        score: the highest value of the map inside.
    """

    x: int
    y: int
    width: int
    height: int
    area_px: int
    score: float


def find_regions(
    values: NDArray[np.float32], *, threshold: float, min_area_px: int = 1
) -> tuple[Region, ...]:
    """Regions of a map [H, W] above `threshold`, 8-connected, highest score first.

    Args:
        values: the map, at the size that boxes are wanted in.
        threshold: a pixel strictly above it is defective.
        min_area_px: smaller regions are left out.
    """
    is_defective = values > threshold
    labels, count = ndimage.label(is_defective, structure=_EIGHT_CONNECTED)
    if not count:
        return ()
    numbers = labels[is_defective] - 1  # of the defective pixels alone: most of an image is none
    areas = np.bincount(numbers, minlength=count)
    scores = np.full(count, -np.inf, values.dtype)
    np.maximum.at(scores, numbers, values[is_defective])
    regions = [
        Region(
            x=box[1].start,
            y=box[0].start,
            width=box[1].stop - box[1].start,
            height=box[0].stop - box[0].start,
            area_px=int(area),
            score=float(score),
        )
        for box, area, score in zip(ndimage.find_objects(labels), areas, scores, strict=True)
        if area >= min_area_px
    ]
    return tuple(sorted(regions, key=lambda region: (-region.score, region.y, region.x)))
