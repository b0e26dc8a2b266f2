"""The answer to one image, from its map: score, verdict and defect regions.

Uses numpy and scipy only, so that exported models on the edge answer with the same code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from onenip.errors import CheckpointError, ForeignImageError

Verdict = Literal["normal", "review", "anomalous", "unsure"]

_ROWS = 512  # of a map that are measured together
_EIGHT_CONNECTED = np.ones((3, 3), bool)
# of training images, from their prompts: farther off is another product in any case
REACH_SPREADS = 4.0
UNLIKE_SPREADS = 3.0  # of a normal image's distances from the memory: beyond, it is unlike it
_MOST = 0.6  # of an image: a defect is a part of it, and another product differs all over


class Limits(Protocol):
    """The thresholds of a category, and how they came about."""

    @property
    def image_threshold(self) -> float:
        """An image scoring above it is anomalous."""
        ...

    @property
    def pixel_threshold(self) -> float:
        """A pixel of the map above it is defective."""
        ...

    @property
    def review_threshold(self) -> float | None:
        """An image scoring above it, but not anomalous, is to be reviewed; None where none is."""
        ...

    @property
    def is_provisional(self) -> bool:
        """Whether the category was added without training, from normal images only."""
        ...

    @property
    def normals_needed(self) -> int:
        """Further normal images that a verdict needs; 0 where there are enough."""
        ...


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
        regions: connected defective regions, at the image's own size, highest score first; none where the
            verdict is `normal`.
        seconds: wall-clock time that this image took.
        is_provisional: whether the category was added without training, from normal images only.
        review_threshold: an image scoring above it, but not anomalous, is to be reviewed; None where none is.
        normals_needed: further normal images of the category that a verdict needs; above 0 it is `unsure`.
        unlike_share: share of the image, 0..1, that lies `UNLIKE_SPREADS` farther from the category's memory
            than a normal image does; 0 where there is no memory.
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
    review_threshold: float | None = None
    normals_needed: int = 0
    unlike_share: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """What the score means, by the category's thresholds; see `judge`."""
        return judge(
            self.score,
            self.threshold,
            review_threshold=self.review_threshold,
            normals_needed=self.normals_needed,
        )

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
            "normals_needed": self.normals_needed,
            "regions": [asdict(region) for region in self.regions],
            "seconds": round(self.seconds, 4),
        }


def judge(
    score: float,
    threshold: float,
    *,
    review_threshold: float | None = None,
    normals_needed: int = 0,
) -> Verdict:
    """The one verdict that an image's score gets.

    `unsure` while a category has too few normal images to place a threshold: its scores rank images only.
    Else `anomalous` above the threshold, `review` between the two thresholds, `normal` below. An image's
    pixels do not overrule that: regions are listed where the verdict is not `normal`, above a pixel threshold
    that is never higher than the image's, so that an anomalous image always has a region.
    """
    if normals_needed > 0:
        return "unsure"
    if not score <= threshold:  # nor where the score is no number
        return "anomalous"
    is_near = review_threshold is not None and score > review_threshold
    return "review" if is_near else "normal"


def choose_category(distances: Mapping[str, float], reaches: Mapping[str, float | None]) -> str:
    """Category whose prompts are nearest to an image.

    Args:
        distances: of the image from each category's nearest prompt, by category.
        reaches: distance up to which an image may show the category; None where that is not known.

    Raises:
        ForeignImageError: if it is farther from every category than that: it shows another product.
    """
    known = {name: reaches.get(name) for name in distances}
    if all(reach is not None and distances[name] > reach for name, reach in known.items()):
        raise _name_foreign(distances)
    return min(distances, key=lambda name: distances[name])


def is_foreign(distance: float, reach: float | None, unlike_share: float) -> bool:
    """Whether an image shows another product than a category's.

    It lies beyond the category's reach; or farther from the prompts than every normal image of the training,
    with most of it unlike them. A defect is a part of an image, so it makes neither so; what is spoilt all
    over does.

    Args:
        distance: of the image from the category's nearest prompt.
        reach: distance up to which an image may show the category; None where that is not known: nothing is
            foreign then.
        unlike_share: see `Prediction`.
    """
    if reach is None:
        return False
    return distance > reach or (distance > reach / REACH_SPREADS and unlike_share > _MOST)


def check_belongs(
    prediction: Prediction, distances: Mapping[str, float], reaches: Mapping[str, float | None]
) -> None:
    """Make sure that an image shows the product that it was judged as; see `choose_category`.

    Raises:
        ForeignImageError: if it does not.
    """
    name = prediction.category
    if is_foreign(distances[name], reaches.get(name), prediction.unlike_share):
        raise _name_foreign(distances)


def _name_foreign(names: Iterable[str]) -> ForeignImageError:
    return ForeignImageError(
        "image", f"looks like none of {', '.join(sorted(names))}; name its category if it is one"
    )


def make_prediction(
    fused: NDArray[np.float32],
    *,
    score: float,
    size: tuple[int, int],
    input_size: tuple[int, int],
    limits: Limits,
    category: str,
    category_inferred: bool,
    seconds: float,
    unlike_share: float = 0.0,
) -> Prediction:
    """The prediction that a fused map and its score amount to.

    Args:
        fused: [h, w] float32, the map at any size.
        score: image score.
        size: (height, width) of the image in px.
        input_size: (height, width) of the model's input in px.
        limits: thresholds of the category.
        category: that the image was judged as.
        category_inferred: whether it was inferred from the prompts.
        seconds: wall-clock time that the image took.
        unlike_share: see `Prediction`.

    Raises:
        CheckpointError: if the map or the score is not finite: there is no verdict then.
    """
    if not (np.isfinite(score) and np.isfinite(fused).all()):
        raise CheckpointError(f"the model's map of this image of {category} is not finite")
    native = resize_map(fused, size)
    verdict = judge(
        score,
        limits.image_threshold,
        review_threshold=limits.review_threshold,
        normals_needed=limits.normals_needed,
    )
    pixel_threshold = min(limits.pixel_threshold, limits.image_threshold)
    regions = find_regions(native, threshold=pixel_threshold) if verdict != "normal" else ()
    return Prediction(
        category=category,
        category_inferred=category_inferred,
        score=score,
        threshold=limits.image_threshold,
        map=native,
        input_map=resize_map(fused, input_size),
        pixel_threshold=pixel_threshold,
        regions=regions,
        seconds=seconds,
        is_provisional=limits.is_provisional,
        review_threshold=limits.review_threshold,
        normals_needed=limits.normals_needed,
        unlike_share=unlike_share,
    )


def resize_map(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A map [h, w] at another size (H, W) in px: bilinear between pixel centres, no antialiasing."""
    if values.shape == size:
        return values
    rows, below, down = _weigh(values.shape[0], size[0])
    columns, right, across = _weigh(values.shape[1], size[1])
    wide = values[:, columns] * (1 - across) + values[:, right] * across  # [h, W]
    upper, tall = wide[rows], wide[below]  # [H, W]
    tall -= upper  # in place: these are the large arrays
    tall *= down[:, None]
    tall += upper
    return tall.astype(np.float32, copy=False)


def _weigh(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each new position: the old one before it, the one after, and the weight of that."""
    scale = np.float32(old) / np.float32(new)
    place = np.maximum((np.arange(new, dtype=np.float32) + 0.5) * scale - 0.5, 0)
    before = np.minimum(place.astype(np.int64), old - 1)
    return before, np.minimum(before + 1, old - 1), (place - before).astype(np.float32)


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
    areas = np.zeros(count, np.int64)
    scores = np.full(count, -np.inf, values.dtype)
    for top in range(0, len(values), _ROWS):  # a huge image may be anomalous all over
        rows = slice(top, top + _ROWS)
        numbers = labels[rows][is_defective[rows]] - 1
        areas += np.bincount(numbers, minlength=count)
        np.maximum.at(scores, numbers, values[rows][is_defective[rows]])
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
