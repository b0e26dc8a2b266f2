"""What becomes of one image that arrived as normal: taken, held for a person, or set aside."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onenip.errors import ImageError
from onenip.images import IMAGE_SUFFIXES, hash_file, load_image
from onenip.ingestion.fingerprint import Fingerprint, KnownImages, take_fingerprint
from onenip.ingestion.journal import Item, Outcome
from onenip.params import RetrainParams

if TYPE_CHECKING:
    from onenip.detector import Detector

_NAME = re.compile(r"\w[\w .+()-]*")
_MIN_SIDE_PX = 16
_MIN_SPREAD = 1.0  # levels: below it an image is one flat colour
_HEX_DIGITS = 24  # of a content-derived file name


@dataclass(frozen=True)
class Verdict:
    """What becomes of an image.

    Attributes:
        outcome: accepted, quarantine (cannot be used), held (a person must look) or duplicates.
        reason: why it is not accepted.
        sha256: of its bytes.
        fingerprint: None if it cannot be decoded.
        digest: of the champion that looked at it, empty if none did.
        score: image score that the champion gave it.
        threshold: above which the champion calls an image anomalous.
        distance: of its embedding from the category's nearest prompt.
    """

    outcome: Outcome
    reason: str
    sha256: str
    fingerprint: Fingerprint | None = None
    digest: str = ""
    score: float | None = None
    threshold: float | None = None
    distance: float | None = None


def inspect(
    path: Path,
    item: Item,
    *,
    known: KnownImages,
    champion: Detector | None,
    is_known_category: bool,
    is_released: bool,
    params: RetrainParams,
) -> Verdict:
    """Judge one fetched image.

    Args:
        path: the fetched file.
        item: where it came from.
        known: images in the data.
        champion: the detector that serves the category, None if none does.
        is_known_category: whether the data has the category.
        is_released: whether a person looked at this very image before and let it pass.
        params: what is held.
    """
    sha256 = hash_file(path)
    if not _NAME.fullmatch(item.category):
        return Verdict("held", "it lies in no folder named as a category", sha256)
    image, problem = _decode(path, item)
    if image is None:
        return Verdict("quarantine", problem, sha256)
    fingerprint = take_fingerprint(image, sha256)
    same = known.find_same(sha256)
    if same is not None:
        return Verdict("duplicates", f"the same file as {same}", sha256, fingerprint)
    if not is_known_category and not params.new_categories and not is_released:
        reason = f"unknown category {item.category}; see retrain.new_categories"
        return Verdict("held", reason, sha256, fingerprint)
    levels = params.near_duplicate_levels
    similar = known.find_similar(item.category, fingerprint, levels=levels)
    if similar is not None and not is_released:
        return Verdict("duplicates", f"looks the same as {similar}", sha256, fingerprint)
    if champion is None or item.category not in champion.categories:
        return Verdict("accepted", "", sha256, fingerprint)
    outcome, reason, facts = _ask(champion, image, item.category, params)
    if is_released:
        outcome, reason = "accepted", ""
    return Verdict(outcome, reason, sha256, fingerprint, champion.digest, *facts)


def placed_name(item: Item, sha256: str) -> str:
    """Path below the data root of an accepted image: by its content, so twice is once."""
    suffix = PurePosixPath(item.key).suffix.lower()
    return f"{item.category}/train/good/{sha256[:_HEX_DIGITS]}{suffix}"


def shelf_name(item: Item, sha256: str) -> str:
    """Path below a shelf of an image that is set aside."""
    folder = item.category if _NAME.fullmatch(item.category) else "unsorted"
    return f"{folder}/{sha256[:12]}-{PurePosixPath(item.key).name}"


def _decode(path: Path, item: Item) -> tuple[NDArray[np.uint8] | None, str]:
    if PurePosixPath(item.key).suffix.lower() not in IMAGE_SUFFIXES:
        return None, "its name does not end as that of an image"
    if path.stat().st_size == 0:
        return None, "it has 0 bytes"
    try:
        image = load_image(path)
    except ImageError as error:
        return None, error.reason
    if min(image.shape[:2]) < _MIN_SIDE_PX:
        return None, f"{image.shape[1]}x{image.shape[0]} px is too small"
    if float(image.std()) < _MIN_SPREAD:
        return None, "it is one flat colour"
    return image, ""


def _ask(
    champion: Detector, image: NDArray[np.uint8], category: str, params: RetrainParams
) -> tuple[Outcome, str, tuple[float, float, float]]:
    """What the champion says: outcome, reason, and score, threshold, distance."""
    distances = champion.measure_distances(image)
    prediction = champion.predict([image], category=category)[0]
    facts = (prediction.score, prediction.threshold, distances[category])
    looks_like = min(distances, key=lambda name: distances[name])
    if params.hold_foreign and looks_like != category:
        return "held", f"looks like {looks_like}, not like {category}", facts
    if params.hold_anomalous and prediction.is_anomalous:
        reason = (
            f"arrived as normal, but the champion finds a defect: score {prediction.score:.3g} "
            f"above {prediction.threshold:.3g}"
        )
        return "held", reason, facts
    return "accepted", "", facts
