"""The answer to one image, from its map: score, verdict and defect regions.

Uses numpy and scipy only, so that exported models on the edge answer with the same code.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Verdict = Literal["normal", "anomalous"]

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


@dataclass(frozen=True)
class Prediction:
    """Score, verdict, map and defect regions of one image.

    Attributes:
        category: the product category that the image was judged as.
        category_inferred: whether the category was inferred from the prompts, not given.
        score: image score; higher is more anomalous.
        threshold: an image scoring above it is anomalous.
        map: [H, W] float32 at the image's own size; higher is more anomalous.
        input_map: [h, w] float32, the same map at the model's input size.
        pixel_threshold: a pixel of the map above it is defective.
        regions: connected defective regions, at the image's own size, highest score first.
        seconds: wall-clock time that this image took.
        is_provisional: whether the category was added without training, from normal images only.
    """

    category: str
    category_inferred: bool
    score: float
    threshold: float
    map: NDArray[np.float32]
    input_map: NDArray[np.float32]
    pixel_threshold: float
    regions: tuple[Region, ...]
    seconds: float
    is_provisional: bool = False

    @property
    def verdict(self) -> Verdict:
        """`anomalous` if the score is above the threshold, else `normal`."""
        return "anomalous" if self.score > self.threshold else "normal"

    @property
    def is_anomalous(self) -> bool:
        """Whether the verdict is `anomalous`."""
        return self.verdict == "anomalous"

    def to_dict(self) -> dict[str, Any]:
        """The prediction without its maps, as plain values for JSON; boxes in px, origin top-left."""
        return {
            "category": self.category,
            "category_inferred": self.category_inferred,
            "score": self.score,
            "threshold": self.threshold,
            "verdict": self.verdict,
            "provisional": self.is_provisional,
            "regions": [asdict(region) for region in self.regions],
            "seconds": round(self.seconds, 4),
        }


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
    numbers = labels[is_defective] - 1  # only defective pixels: there are few of them
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
