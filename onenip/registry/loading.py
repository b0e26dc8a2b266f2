"""The champion of a category, ready to answer: what was approved, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from onenip.errors import DataError, RegistryError
from onenip.registry.publishing import load_pinned
from onenip.registry.versions import Version, champion, list_categories, serving

if TYPE_CHECKING:
    from onenip.detector import Detector
    from onenip.image_like import ImageLike
    from onenip.prediction import Prediction


class ServedDetectors:
    """What serves every category, as one: an image is judged by what serves the category that it looks like.

    Args:
        detectors: by the category that each serves; at least one.
    """

    def __init__(self, detectors: Mapping[str, Detector]) -> None:
        self._detectors = dict(sorted(detectors.items()))

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories, sorted."""
        return tuple(self._detectors)

    def predict(
        self, images: Sequence[ImageLike], *, category: str | None = None
    ) -> list[Prediction]:
        """Scores, maps, regions and verdicts; None tells each image's category from the prompts.

        Raises:
            DataError: if nothing serves the category.
            ImageError: if an image cannot be read.
        """
        if category is None:
            return [self._tell(image) for image in images]
        if category not in self._detectors:
            known = ", ".join(self.categories)
            raise DataError(f"unknown category {category!r}; there serve {known}")
        return self._detectors[category].predict(images, category=category)

    def _tell(self, image: ImageLike) -> Prediction:
        from onenip.image_like import to_array

        pixels = to_array(image)
        unlike = {
            name: detector.measure_distances(pixels)[name]
            for name, detector in self._detectors.items()
        }
        told = min(unlike, key=lambda name: unlike[name])
        prediction = self._detectors[told].predict([pixels], category=told)[0]
        return replace(prediction, category_was_told=True)


def load_all_serving() -> ServedDetectors:
    """What serves every category; one detector where several share an approved model.

    Raises:
        RegistryError: if nothing serves, or as for `load_version`.
    """
    detectors: dict[str, Detector] = {}
    approved: dict[str, Detector] = {}  # by digest
    for name in list_categories():
        version = serving(name)
        if version is None:
            continue
        check_approval(version)
        shared = approved.get(version.digest) if version.approval == "approved" else None
        detectors[name] = shared or load_version(version)
        if version.approval == "approved":
            approved[version.digest] = detectors[name]
    if not detectors:
        raise RegistryError("no champion of any category; see `onenip status`, or give --model")
    return ServedDetectors(detectors)


def load_champion(category: str) -> tuple[Detector, Version]:
    """The detector that was approved for a category, and the version that says so.

    Raises:
        RegistryError: if there is no champion, it was never approved (an alias set by hand counts
            once `onenip reconcile` recorded it), the stored model is not the one that was
            approved, or the registry cannot be reached.
    """
    version = champion(category)
    if version is None:
        raise RegistryError(
            f"{category}: no champion; see `onenip status`, then `onenip approve {category}`"
        )
    return load_version(version), version


def load_serving(category: str) -> tuple[Detector, Version]:
    """The detector that answers for a category: its champion, else its provisional one.

    Raises:
        RegistryError: if there is neither, or as for `load_version`.
    """
    version = serving(category)
    return (load_version(version), version) if version else load_champion(category)


def load_version(version: Version) -> Detector:
    """The detector of an approved or provisional version, if it is still what was stored as such.

    Raises:
        RegistryError: if the version is neither, or the stored model was changed.
    """
    check_approval(version)
    detector = load_pinned(version.weights_uri, version.digest)
    if (
        version.approval == "provisional"
        and not detector.spec.categories[version.category].is_provisional
    ):
        raise RegistryError(
            f"{version.category} version {version.number} was trained and needs approval; it is not served"
        )
    return detector


def check_approval(version: Version) -> None:
    """Make sure that a version may serve.

    Raises:
        RegistryError: if it is neither approved nor provisional, or its digest is not the approved one.
    """
    name = f"{version.category} version {version.number}"
    if version.approval not in ("approved", "provisional"):
        raise RegistryError(f"{name} is {version.approval}, not approved; it is not served")
    if version.approval == "approved" and version.approved_digest != version.digest:
        raise RegistryError(f"{name}: its digest was changed after approval; it is not served")
