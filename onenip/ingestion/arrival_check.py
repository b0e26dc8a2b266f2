"""What becomes of one image that arrived as normal: taken, held for a person, or set aside."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onenip.data.labels import (
    UNSORTED,
    calls_defective,
    find_category_problem,
    is_normal_label,
)
from onenip.detector.prediction import is_foreign
from onenip.errors import ImageError, RangeError
from onenip.images import (
    IMAGE_SUFFIXES,
    SampleRange,
    explain_suffix,
    hash_file,
    load_image,
    shows_nothing,
)
from onenip.ingestion.fingerprint import Fingerprint, KnownImages, take_fingerprint
from onenip.ingestion.journal import Item, Outcome
from onenip.params import RetrainParams

if TYPE_CHECKING:
    from onenip.detector.detector import Detector

_MIN_SIDE_PX = 16
_MIN_SPREAD = 1.0  # levels: below it an image is one flat colour
_SIMILAR_NAME = 0.8  # of 1: names this alike are taken for a slip of the pen
_FOREIGN_SPREADS = 1.5  # an image this near to another category's prompts may be one of it
_HEX_DIGITS = 24  # of a content-derived file name

NEAR = "nearly equals "  # begins the reason of an accepted near-duplicate


@dataclass(frozen=True)
class Verdict:
    """What becomes of an image.

    Attributes:
        outcome: accepted, quarantine (cannot be used), held (a person must look) or duplicates.
        reason: why it is not accepted; of an accepted one, which image of the data it nearly equals.
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
    unified: Callable[[], Detector | None],
    categories: Sequence[str],
    is_released: bool,
    params: RetrainParams,
    sample_range: SampleRange | None = None,
) -> Verdict:
    """Judge one fetched image.

    A duplicate is an image whose bytes or decoded pixels are in the data. One that only looks the same is
    judged as any other, because a small defect on a part in a fixed pose looks the same, too.

    Args:
        path: the fetched file.
        item: where it came from.
        known: images in the data.
        champion: the detector that serves the category, None if none does.
        unified: gives the detector that serves most categories, None if none serves any.
        categories: those of the data.
        is_released: whether a person looked at this very image before and let it pass.
        params: what is held.
        sample_range: of the category's samples of more than 8 bits.
    """
    sha256 = hash_file(path)
    if not item.category:
        return Verdict("held", "it lies in no folder named as a category", sha256)
    if problem := find_category_problem(item.category):
        reason = f"its folder {item.category!r} cannot be a category: {problem}"
        return Verdict("held", reason, sha256)
    try:
        image, problem = _decode(path, item, sample_range)
    except RangeError as error:  # once it is declared, a release brings the image back
        return Verdict("held", error.reason, sha256)
    if image is None:
        return Verdict("quarantine", problem, sha256)
    fingerprint = take_fingerprint(image, sha256)
    same = known.find_same(fingerprint)
    if same is not None:
        way = "file" if known.find_file(sha256) == same else "picture"
        return Verdict("duplicates", f"the same {way} as {same}", sha256, fingerprint)
    if not is_released and (said := _find_defect_word(item.key)):
        reason = f"arrived as normal, but its path says {said!r}"
        return Verdict("held", reason, sha256, fingerprint)
    if item.category not in categories and not is_released:
        reason = _doubt_category(item.category, image, unified, categories, params)
        if reason:
            return Verdict("held", reason, sha256, fingerprint)
    outcome: Outcome = "accepted"
    reason, digest = "", ""
    facts: tuple[float | None, float | None, float | None] = (None, None, None)
    if champion is not None and item.category in champion.categories:
        try:
            outcome, reason, facts = _ask(champion, image, item.category, params)
        except ImageError as error:
            return Verdict("quarantine", error.reason, sha256, fingerprint, champion.digest)
        digest = champion.digest
    if outcome == "accepted" or is_released:
        near = known.find_near(item.category, image, fingerprint, params.near_duplicate_levels)
        outcome, reason = "accepted", f"{NEAR}{near}" if near else ""
        is_doubted = params.hold_foreign and not (digest or near or is_released)
        if is_doubted and known.looks_foreign(item.category, image):
            outcome = "held"
            reason = f"it looks like none of the images of {item.category} in the data"
    return Verdict(outcome, reason, sha256, fingerprint, digest, *facts)


def placed_name(item: Item, sha256: str) -> str:
    """Path below the data root of an accepted image: by its content, so twice is once."""
    return name_by_content(item.category, sha256, PurePosixPath(item.key).suffix)


def name_by_content(category: str, sha256: str, suffix: str) -> str:
    """Path below the data root of a normal training image with this content."""
    return f"{category}/train/good/{sha256[:_HEX_DIGITS]}{suffix.lower()}"


def shelf_name(item: Item, sha256: str) -> str:
    """Path below a shelf of an image that is set aside."""
    is_name = item.category and not find_category_problem(item.category)
    folder = item.category if is_name else UNSORTED
    return f"{folder}/{sha256[:12]}-{PurePosixPath(item.key).name}"


def _decode(
    path: Path, item: Item, sample_range: SampleRange | None
) -> tuple[NDArray[np.uint8] | None, str]:
    if PurePosixPath(item.key).suffix.lower() not in IMAGE_SUFFIXES:
        return None, explain_suffix(path)
    if path.stat().st_size == 0:
        return None, "it has 0 bytes"
    try:
        image = load_image(path, sample_range=sample_range)
    except RangeError:
        raise
    except ImageError as error:
        return None, error.reason
    if min(image.shape[:2]) < _MIN_SIDE_PX:
        return None, f"{image.shape[1]}x{image.shape[0]} px is too small"
    if float(image.std()) < _MIN_SPREAD or shows_nothing(image):
        return None, "it is one flat colour"
    return image, ""


def _find_defect_word(key: str) -> str:
    """What in a key says that an image is not normal: a folder `NG`, one below `test`, a name as `bad_8`."""
    path = PurePosixPath(key)
    folders = path.parts[1:-1]
    for word in (*folders, path.stem):
        if calls_defective(word):
            return word
    is_test = len(folders) > 1 and folders[0].casefold() == "test"
    return folders[-1] if is_test and not is_normal_label(folders[-1]) else ""


def _doubt_category(
    name: str,
    image: NDArray[np.uint8],
    unified: Callable[[], Detector | None],
    categories: Sequence[str],
    params: RetrainParams,
) -> str:
    """Why a new category may be a mistake, empty if nothing says so."""
    if not params.new_categories:
        return f"unknown category {name}; see retrain.new_categories"
    if not params.hold_foreign:
        return ""
    if calls_defective(name):
        return f"unknown category {name}, whose name says that its images are no normal ones"
    folded = {one.casefold(): one for one in categories}
    similar = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=_SIMILAR_NAME)
    if similar:
        return f"unknown category {name}; is it {folded[similar[0]]}?"
    detector = unified()
    if detector is None:
        return ""
    distances = detector.measure_distances(image)
    nearest = min(distances, key=lambda one: distances[one])
    spread = _measure_spread(detector, nearest)
    if distances[nearest] > _FOREIGN_SPREADS * spread:
        return ""
    return f"unknown category {name}, but it looks like {nearest}"


def _measure_spread(detector: Detector, category: str) -> float:
    """How far apart normal images of a category look, by its prompts; 0 with a single one."""
    embeddings = detector.state(
        category
    ).embeddings  # the last chosen is the farthest from the others
    if len(embeddings) == 1:
        return 0.0
    return float((embeddings[:-1] - embeddings[-1]).norm(dim=1).min())


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
    is_other = is_foreign(distances[category], champion.reaches[category], prediction.unlike_share)
    if params.hold_foreign and is_other:
        return "held", f"it looks like none of the normal images of {category}", facts
    if params.hold_anomalous and prediction.is_anomalous:
        reason = (
            f"arrived as normal, but the champion finds a defect: score {prediction.score:.3g} "
            f"above {prediction.threshold:.3g}"
        )
        return "held", reason, facts
    return "accepted", "", facts
