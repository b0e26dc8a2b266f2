"""The detectors of all served categories as one model: each image is judged by that of its category.

Knows detectors; knows no registry and no requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from onenip.detector.detector import Detector
from onenip.detector.image_like import ImageLike, to_array
from onenip.detector.prediction import Prediction, check_belongs, choose_category
from onenip.errors import ForeignImageError, UnknownCategoryError
from onenip.images import SampleRange, share_range


class ServedDetectors:
    """Detectors by the category that each is served for.

    A detector may know categories that are not served: an image that looks like one of these is refused,
    not judged as another category.

    Args:
        detectors: at least one; several categories may share one.
    """

    def __init__(self, detectors: Mapping[str, Detector]) -> None:
        self._detectors = dict(sorted(detectors.items()))
        self._distinct = list({id(one.network): one for one in detectors.values()}.values())

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories, sorted."""
        return tuple(self._detectors)

    def sample_range(self, category: str | None) -> SampleRange | None:
        """As `Detector.sample_range`.

        Raises:
            UnknownCategoryError: if the category is not served.
        """
        if category is None:
            return share_range(one.sample_range(name) for name, one in self._detectors.items())
        return self._find(category).sample_range(category)

    def predict(
        self, images: Sequence[ImageLike], *, category: str | None = None, batch_size: int = 1
    ) -> list[Prediction]:
        """Scores, maps, regions and verdicts.

        Args:
            images: as `Detector.predict` takes them.
            category: of all the images; None to infer each one's from the prompts.
            batch_size: images of a given category that are judged in one pass.

        Raises:
            UnknownCategoryError: if the category is not served.
            ImageError: if an image cannot be read, or looks like a category that is not served.
        """
        if category is None:
            return [self._predict_inferred(image) for image in images]
        return self._find(category).predict(images, category=category, batch_size=batch_size)

    def _find(self, category: str) -> Detector:
        if category not in self._detectors:
            raise UnknownCategoryError(category, self.categories, kind="served")
        return self._detectors[category]

    def _predict_inferred(self, image: ImageLike) -> Prediction:
        """Prediction by the detector of the category that an image looks like."""
        pixels = to_array(image, self.sample_range(None))
        distances: dict[str, float] = {}
        reaches: dict[str, float | None] = {}
        for detector in self._distinct:
            for name, distance in detector.measure_distances(pixels).items():
                champion = self._detectors.get(name, detector)
                if champion.network is detector.network:  # else another one is asked
                    distances[name] = min(distance, distances.get(name, distance))
                    reaches[name] = champion.reaches[name]
        inferred = choose_category(distances, reaches)
        if inferred not in self._detectors:
            named = image if isinstance(image, (str, Path)) else "the image"
            raise ForeignImageError(named, f"looks like {inferred}, which has no approved model")
        prediction = self._detectors[inferred].predict([pixels], category=inferred)[0]
        check_belongs(prediction, distances, reaches)
        return replace(prediction, category_inferred=True)
