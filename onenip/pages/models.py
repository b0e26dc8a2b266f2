"""Detectors for the page: a folder's, or a category's champion and challenger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onenip.data.outputs import OUTPUTS
from onenip.detector.detector import Detector
from onenip.detector.prediction import Prediction
from onenip.errors import ForeignImageError, OneNIPError, UnreachableError
from onenip.images import load_image
from onenip.registry.champions import Champions, load_candidate
from onenip.registry.tags import Version
from onenip.registry.versions import Snapshot, find_version, read_snapshot


@dataclass(frozen=True)
class Candidate:
    """A detector to show.

    Attributes:
        role: champion, provisional, challenger or folder; of other versions what was decided.
        detector: the model.
        version: in the registry; None for a folder.
    """

    role: str
    detector: Detector
    version: Version | None = None

    @property
    def title(self) -> str:
        """Its title on the page."""
        if self.version is None:
            return "this model"
        return f"{self.role}: version {self.version.number}"


def list_known_categories(
    folder: Path | None, read: Callable[[], Snapshot]
) -> tuple[list[str], str]:
    """Categories to choose from, and the problem with the registry that `read` asks, if there is one."""
    if folder is not None:
        return list(Detector.load(folder).categories), ""
    try:
        registered = list(read().standings)
    except OneNIPError as error:
        registered, problem = [], str(error)
    else:
        problem = ""
    if registered or not OUTPUTS.model.is_dir():
        return registered, problem
    return list(Detector.load(OUTPUTS.model).categories), problem


def find_candidates(
    category: str, folder: Path | None, read: Callable[[], Snapshot] = read_snapshot
) -> list[Candidate]:
    """Detectors for a category: champion or provisional before challenger, else the folder's.

    Args:
        category: the product category.
        folder: of the one model to show; None: the registry's.
        read: asks the registry.

    Raises:
        OneNIPError: if there is none.
    """
    if folder is not None:
        return [Candidate("folder", Detector.load(folder))]
    try:
        standing = read().standing(category)
        answering, waiting = standing.serving, standing.challenger
    except UnreachableError:
        if not OUTPUTS.model.is_dir():
            raise
        answering, waiting = None, None
    found = []
    if answering is not None:
        role = "provisional" if answering.approval == "provisional" else "champion"
        found.append(Candidate(role, Champions().load(answering), answering))
    if waiting is not None:
        detector = load_candidate(waiting)
        found.append(Candidate("challenger", detector, waiting))
    if not found:
        found.append(Candidate("folder", Detector.load(OUTPUTS.model)))
    return found


def load_version(category: str, number: int) -> Candidate:
    """The detector of any version, approved or not.

    Raises:
        RegistryError: if there is none, or its stored model was changed.
    """
    version = find_version(category, number)
    role = version.aliases[0] if version.aliases else version.approval
    return Candidate(role, load_candidate(version), version)


@dataclass(frozen=True)
class JudgedUpload:
    """An uploaded image and its predictions.

    Attributes:
        image: [H, W, 3] uint8.
        looks_like: the category whose prompts it resembles most, of those that the first candidate knows.
        predictions: one for each candidate.
    """

    image: NDArray[np.uint8]
    looks_like: str
    predictions: list[Prediction]


def judge_upload(content: bytes, category: str, candidates: Sequence[Candidate]) -> JudgedUpload:
    """Predictions of each candidate for a file's bytes.

    Raises:
        ImageError: if the bytes are no usable image.
        DataError: if a candidate does not know the category.
    """
    first = candidates[0].detector
    images = [
        load_image(content, sample_range=one.detector.sample_range(category)) for one in candidates
    ]
    predictions = [
        one.detector.predict([image], category=category)[0]
        for one, image in zip(candidates, images, strict=True)
    ]
    try:
        looks_like = first.predict([images[0]])[0].category
    except ForeignImageError:
        looks_like = "none of the known categories"
    return JudgedUpload(images[0], looks_like, predictions)
