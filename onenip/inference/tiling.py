"""Large images in overlapping tiles, for defects that are too small in the shrunk whole image.

Each tile is judged as an image of its own; the maps are blended, so that no seam shows and a defect
across one is one region. The image's score is that of its worst tile.

A category's prompts, memory and thresholds hold at one scale: those of a model that was trained on whole
images do not fit tiles. `TiledDetector.from_normals` takes new ones from tiles of normal images. Only a
model that was trained on tiles of this size needs none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from onenip.detector.detector import Detector
from onenip.detector.image_like import ImageLike, decide_given, to_array
from onenip.detector.prediction import Prediction, make_prediction
from onenip.detector.thresholds import NormalScores, describe_added
from onenip.errors import DataError, UnknownCategoryError
from onenip.images import SampleRange, share_range
from onenip.inference.tiles import Box, Tiling, cut_tile, list_tiles, score_in_tiles
from onenip.model.file import CategorySpec

_BATCH = (
    8  # tiles in one pass: a fixed number, so that an image's maps never depend on other images
)
_TILED = "{} in tiles"


class TiledDetector:
    """A detector that judges large images in tiles.

    Args:
        detector: judges the tiles.
        tile_px: side of a tile in px of the image, cut off at the image's own sides.
        overlap: fraction of a tile that it shares with the next one at least, 0..0.75. A defect up to
            `overlap * tile_px` px wide is whole in some tile.
        thresholds: image thresholds by category, where they differ from the detector's.
        names: the detector's own name by category, where it differs.

    Example:
        >>> tiled = TiledDetector.from_normals(
        ...     detector, "bottle", normals, tile_px=256
        ... )  # doctest: +SKIP
        >>> tiled.predict(["big.png"], category="bottle")[0].regions  # doctest: +SKIP
    """

    def __init__(
        self,
        detector: Detector,
        *,
        tile_px: int,
        overlap: float = 0.25,
        thresholds: dict[str, float] | None = None,
        names: dict[str, str] | None = None,
    ) -> None:
        self.detector = detector
        self.tiling = Tiling(tile_px, overlap)
        self._thresholds = dict(thresholds or {})
        self._names = names or {name: name for name in detector.categories}

    @classmethod
    def from_normals(
        cls,
        detector: Detector,
        category: str,
        normals: Sequence[ImageLike],
        *,
        tile_px: int,
        overlap: float = 0.25,
    ) -> Self:
        """A tiled detector for one category, whose prompts, memory and thresholds are those of tiles.

        Args:
            detector: its network is used as it is.
            category: name of the category; the detector need not know it.
            normals: normal images at the size that images will have.
            tile_px: side of a tile.
            overlap: of tiles.

        Raises:
            DataError: if there are no normal images.
        """
        if not normals:
            raise DataError(f"{category}: tiles need normal images to be calibrated on")
        is_known = category in detector.categories
        sample_range = detector.sample_range(category) if is_known else decide_given(normals)
        images = [to_array(image, sample_range) for image in normals]
        boxes = [list_tiles((i.shape[0], i.shape[1]), tile_px, overlap) for i in images]
        tiles = [
            cut_tile(image, box) for image, own in zip(images, boxes, strict=True) for box in own
        ]
        name = _TILED.format(category)
        extended = detector.add_category(
            name, tiles, siblings=_relate(boxes), sample_range=sample_range
        )
        known = extended.spec.categories[name]
        owners = np.repeat(np.arange(len(images)), [len(own) for own in boxes])
        scores = np.array(known.normal_scores)
        worst = [known.image_threshold]
        if len(images) > 1:
            owners = owners[: len(scores)]  # calibration looks at so many tiles
            worst = [float(scores[owners == owner].max()) for owner in np.unique(owners)]
        rate = detector.spec.calibrate.false_alarm_rate
        usual = describe_added(NormalScores.of(worst), {}, are_copies=False)
        threshold = max(usual.threshold(rate), known.image_threshold)
        # How much is known is a matter of images, not of tiles.
        given = [f"given {i}" for i in range(len(images))]
        spec = known.model_copy(update={"normal_names": given})
        categories = {**extended.spec.categories, name: spec}
        extended.spec = extended.spec.model_copy(update={"categories": categories})
        return cls(
            extended,
            tile_px=tile_px,
            overlap=overlap,
            thresholds={category: threshold},
            names={category: name},
        )

    def describe(self) -> dict[str, dict[str, Any]]:
        """The detector's own name and the image threshold, by category."""
        return {
            name: {"own_name": own, "image_threshold": self._limits(name).image_threshold}
            for name, own in self._names.items()
        }

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories, sorted."""
        return tuple(sorted(self._names))

    def sample_range(self, category: str | None) -> SampleRange | None:
        """As `Detector.sample_range`.

        Raises:
            UnknownCategoryError: if the category is unknown.
        """
        if category is None:
            return share_range(map(self.detector.sample_range, self._names.values()))
        if category not in self._names:
            raise UnknownCategoryError(category, self.categories)
        return self.detector.sample_range(self._names[category])

    def predict(
        self, images: Sequence[ImageLike], *, category: str | None = None
    ) -> list[Prediction]:
        """As `Detector.predict`, from tiles; `input_map` is the map shrunk to the model's input size.

        A category that is not given is inferred from the whole image, if there are several.

        Raises:
            DataError: if the category is unknown.
            ImageError: if an image cannot be read.
        """
        sample_range = self.sample_range(category)
        return [self._predict(to_array(image, sample_range), category) for image in images]

    def _predict(self, image: NDArray[np.uint8], category: str | None) -> Prediction:
        started_at = time.perf_counter()
        name = category or self._infer_category(image)
        blended, score = score_in_tiles(
            image, lambda tiles: self._score_tiles(tiles, name), self.tiling
        )
        return make_prediction(
            blended,
            score=score,
            size=(image.shape[0], image.shape[1]),
            input_size=self.detector.input_size,
            limits=self._limits(name),
            category=name,
            category_inferred=category is None,
            seconds=time.perf_counter() - started_at,
        )

    def _score_tiles(
        self, tiles: Iterator[NDArray[np.uint8]], category: str
    ) -> Iterator[tuple[NDArray[np.float32], float]]:
        while batch := list(islice(tiles, _BATCH)):
            yield from self.detector.score_images(batch, self._names[category])

    def _infer_category(self, image: NDArray[np.uint8]) -> str:
        if len(self._names) == 1:
            return self.categories[0]
        distances = self.detector.measure_distances(
            image
        )  # of a whole image from tiles: only a rank
        return min(distances, key=lambda name: distances[name])

    def _limits(self, category: str) -> CategorySpec:
        known = self.detector.spec.categories[self._names[category]]
        threshold = self._thresholds.get(category, known.image_threshold)
        return known.model_copy(update={"image_threshold": threshold})


def _relate(boxes: Sequence[Sequence[Box]]) -> NDArray[np.bool_]:
    """Which tiles may not judge each other: [n, n] bool, those of the same image.

    Of a single image it is those that overlap, since there are no others.

    Args:
        boxes: of the tiles of each image.
    """
    if len(boxes) > 1:
        images = np.repeat(np.arange(len(boxes)), [len(own) for own in boxes])
        return np.equal.outer(images, images)
    y, x, height, width = np.array(boxes[0]).T
    return np.logical_and(
        abs(np.subtract.outer(y, y)) < height, abs(np.subtract.outer(x, x)) < width
    )
