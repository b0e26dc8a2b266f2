"""Drift: whether arriving normal images still look like those that the champion was approved on.

Asks the champions, each once about an image, and compares; remembers what people were notified of.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from onenip.data.manifest import DATA_DIR, Sample, load_manifest, select
from onenip.data.outputs import OUTPUTS
from onenip.detector.detector import Detector
from onenip.errors import CheckpointError, ImageError, RegistryError, UnreachableError
from onenip.folders import write_whole
from onenip.images import load_image
from onenip.ingestion.journal import Journal
from onenip.params import DriftParams, Params
from onenip.registry.champions import Champions
from onenip.review.answers import Answers
from onenip.sources.inbox import Inbox
from onenip.version import hash_code

Origin = Literal["arrived", "served"]

_Asked = Literal["score", "distance"]

_BASELINE_IMAGES = 64
_CHANCE = 0.01  # a difference that chance gives more often than this is none


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sightings:
    """What a champion says of normal images of one category.

    Attributes:
        scores: [n] float64, image scores.
        is_anomalous: [n] bool, its verdicts.
        distances: [m] float64, of embeddings from the nearest prompt; of the same images, or some.
    """

    scores: NDArray[np.float64]
    is_anomalous: NDArray[np.bool_]
    distances: NDArray[np.float64]

    @classmethod
    def of(cls, scores: ArrayLike, is_anomalous: ArrayLike, distances: ArrayLike) -> Sightings:
        """Sightings of plain lists."""
        return cls(
            np.asarray(scores, dtype=np.float64),
            np.asarray(is_anomalous, dtype=bool),
            np.asarray(distances, dtype=np.float64),
        )


@dataclass(frozen=True)
class DriftResult:
    """How far one category moved.

    Attributes:
        category: the product category.
        images: images that were looked at.
        alarm_share: fraction of them that the champion calls anomalous.
        score_distance: Kolmogorov-Smirnov distance between their scores and those at approval, 0..1.
        embedding_distance: median distance from the prompts, as a multiple of that at approval.
        reasons: a sentence for each limit that was passed; empty if there is no drift.
        digest: of the champion's model.
        origin: arrived in the inbox, or served.
    """

    category: str
    images: int
    alarm_share: float
    score_distance: float
    embedding_distance: float
    reasons: tuple[str, ...]
    digest: str = ""
    origin: Origin = "arrived"

    @property
    def title(self) -> str:
        """The category, and where its images come from if they did not arrive in the inbox."""
        return self.category if self.origin == "arrived" else f"{self.category} ({self.origin})"

    @property
    def is_drifting(self) -> bool:
        """Whether a limit was passed."""
        return bool(self.reasons)

    def dump(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"reasons": list(self.reasons)}


class DriftMemory:
    """Which drift people were notified of, in a JSON file: each once per champion.

    Args:
        path: the file; made with its folder if absent.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def choose_new(self, found: Sequence[DriftResult]) -> list[DriftResult]:
        """Drifting categories that were not remembered; what drifts no more is forgotten."""
        known = self.read()
        drifting = {result.title: result for result in found if result.is_drifting}
        measured = {result.title for result in found}
        self._write({c: d for c, d in known.items() if c not in measured or c in drifting})
        return [one for one in drifting.values() if known.get(one.title) != one.digest]

    def remember(self, result: DriftResult) -> None:
        """Note that people were notified."""
        self._write({**self.read(), result.title: result.digest})

    def read(self) -> dict[str, str]:
        """Digest of the champion by category that people were notified about."""
        try:
            return dict(json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def _write(self, known: dict[str, str]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(self._path) as draft:
            draft.write_text(json.dumps(known, sort_keys=True), encoding="utf-8")


class ImageMemory:
    """What champions said of images, in a JSON file, so that each is asked once about an image.

    What a run did not ask for is forgotten at its end; a change of the code forgets everything.

    Args:
        path: the file; made with its folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._code = hash_code(
            "data", "detector", "images.py", "model", libraries=("timm", "torch")
        )
        self._known: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        with suppress(OSError, ValueError, TypeError, KeyError):
            kept = json.loads(path.read_text(encoding="utf-8"))
            self._known = dict(kept["values"]) if kept["code"] == self._code else {}

    def ask(self, question: tuple[str, ...], find: Callable[[], float | None]) -> float | None:
        """The answer to a question, found once.

        Args:
            question: what is asked, the champion's digest, the category and the image's sha256 or id.
            find: gives the answer; None, which is not kept, if there is none now.
        """
        key = " ".join(question)
        value = self._known[key] if key in self._known else find()
        if value is not None:
            self._known[key] = self._asked[key] = float(value)
        return value

    def save(self) -> None:
        """Keep what was asked for."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(self._path) as draft:
            text = json.dumps({"code": self._code, "values": self._asked})
            draft.write_text(text, encoding="utf-8")


def measure_drift(
    category: str,
    *,
    arrived: Sightings,
    approved: Sightings,
    params: DriftParams,
    origin: Origin = "arrived",
) -> DriftResult | None:
    """Compare arrived images with those at approval.

    Args:
        category: the product category.
        arrived: the latest images, those that were held included.
        approved: normal images that the champion was calibrated on.
        params: limits.
        origin: where the images come from.

    Returns:
        What was found; None while too few images arrived, or nothing is known of the approval.
    """
    count = arrived.scores.size
    if count < params.min_images or not approved.scores.size:
        return None
    share = float(arrived.is_anomalous.mean())
    test = stats.ks_2samp(arrived.scores, approved.scores)
    usual = float(np.median(approved.distances)) if approved.distances.size else 0.0
    now = float(np.median(arrived.distances)) if arrived.distances.size else 0.0
    ratio = now / usual if usual > 0 else 1.0
    reasons = []
    if share > params.max_alarm_share:
        reasons.append(
            f"{share:.0%} of {count} {origin} images are called anomalous, "
            f"more than {params.max_alarm_share:.0%}"
        )
    if test.statistic > params.max_score_distance and test.pvalue < _CHANCE:
        reasons.append(
            f"scores are distributed otherwise than at approval: distance {test.statistic:.2f}, "
            f"more than {params.max_score_distance:g}"
        )
    if ratio > params.max_embedding_distance:
        reasons.append(
            f"images look {ratio:.1f} times as far from the prompts as at approval, "
            f"more than {params.max_embedding_distance:g}"
        )
    distance = float(test.statistic)
    return DriftResult(category, count, share, distance, ratio, tuple(reasons), origin=origin)


def look_for_drift(
    params: Params,
    *,
    journal: Journal,
    champions: Champions,
    manifest: Path,
    inbox: Inbox | None = None,
    answers: Answers | None = None,
) -> list[DriftResult]:
    """Drift of every category whose champion has seen enough arrivals, or has judged enough parts.

    Args:
        params: limits.
        journal: of arrivals, with what the champion of that time said.
        champions: who serves.
        manifest: the current one, for the images of the time of approval.
        inbox: holds the images that were held, for a champion that has not judged them yet.
        answers: what was served; None leaves it out.

    Raises:
        RegistryError: if a champion cannot be had.
        SourceError: if the inbox cannot be read.
    """
    found = []
    memory = ImageMemory(OUTPUTS.judged / "drift.json")
    samples = load_manifest(manifest, DATA_DIR) if manifest.is_file() else []
    for category in champions.snapshot.standings:
        try:
            detector = champions.find(category)
        except (RegistryError, CheckpointError) as error:
            if isinstance(error, UnreachableError):
                raise
            log.warning("%s: drift is not measured: %s", category, error)
            continue
        if detector is None:
            continue
        seen: dict[Origin, Sightings] = {
            "arrived": _list_arrived(params, journal, detector, category, inbox, memory)
        }
        if answers is not None:
            seen["served"] = _list_served(params, answers, detector, category, memory)
        if all(one.scores.size < params.drift.min_images for one in seen.values()):
            continue
        approved = _list_approved(detector, category, samples, memory)
        for origin, sightings in seen.items():
            result = measure_drift(
                category, arrived=sightings, approved=approved, params=params.drift, origin=origin
            )
            if result is not None:
                found.append(replace(result, digest=detector.digest))
    memory.save()
    return found


def _list_arrived(
    params: Params,
    journal: Journal,
    detector: Detector,
    category: str,
    inbox: Inbox | None,
    memory: ImageMemory,
) -> Sightings:
    """The champion's answers to the latest arrivals; a newer champion is asked about earlier ones, too.

    Held images are those that look least normal. Where they cannot be had any more, earlier arrivals
    are left out altogether: the accepted ones alone would look too good.
    """
    threshold = detector.spec.categories[category].image_threshold
    items = journal.latest(category, limit=params.drift.window)
    rows = [
        (item.score, not item.score <= threshold, item.distance or 0.0)
        for item in items
        if item.digest == detector.digest and item.score is not None
    ]
    earlier = [item for item in items if item.digest != detector.digest or item.score is None]
    held = {item.name for item in earlier if item.outcome == "held"}
    with tempfile.TemporaryDirectory() as scratch:
        paths = _fetch_held(inbox, held, Path(scratch)) if inbox is not None and held else {}
        if held - paths.keys():
            log.info("%s: drift is measured on what the present champion has seen", category)
            earlier = []
        for item in earlier:
            path = paths.get(item.name, DATA_DIR / item.name)
            if path.is_file():
                try:
                    score = _ask(memory, detector, category, "score", item.sha256, path)
                    distance = _ask(memory, detector, category, "distance", item.sha256, path)
                    rows.append((score, not score <= threshold, distance))
                except ImageError as error:
                    log.warning("left out of the drift of %s: %s", category, error)
    return Sightings.of([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])


def _list_served(
    params: Params, answers: Answers, detector: Detector, category: str, memory: ImageMemory
) -> Sightings:
    """The champion's answers on the line, and how far some of the images lie from its prompts."""
    threshold = detector.spec.categories[category].image_threshold
    latest = answers.list_latest(category=category, limit=params.drift.window)
    given = [one for one in latest if one.facts.get("digest") == detector.digest]
    distances = []
    for one in given[:_BASELINE_IMAGES]:
        distance = memory.ask(
            ("distance", detector.digest, category, one.id),
            partial(_find_served, answers, one.id, detector, category),
        )
        if distance is not None:
            distances.append(distance)
    scores = [float(one.facts["score"]) for one in given]
    return Sightings.of(scores, [score > threshold for score in scores], distances)


def _fetch_held(inbox: Inbox, names: set[str], folder: Path) -> dict[str, Path]:
    """Copies of held images by name, of those that are still held."""
    found: dict[str, Path] = {}
    for arrival in inbox.list_arrivals(shelf="held"):
        if arrival.key in names:
            path = folder / f"{len(found)}{Path(arrival.key).suffix}"
            if inbox.fetch(arrival, path, shelf="held"):
                found[arrival.key] = path
    return found


def _find_served(answers: Answers, answer: str, detector: Detector, category: str) -> float | None:
    content = answers.read_image(answer)
    return None if content is None else _find(detector, category, "distance", content)


def _list_approved(
    detector: Detector, category: str, samples: Sequence[Sample], memory: ImageMemory
) -> Sightings:
    """The champion's own calibration scores, and distances of the images they came from."""
    spec = detector.spec.categories[category]
    used = set(detector.spec.provenance.get("calibration_images", {}))
    chosen = [s for s in select(samples, category=category) if s.name in used]
    distances = []
    for sample in chosen[:_BASELINE_IMAGES]:
        try:
            distances.append(
                _ask(memory, detector, category, "distance", sample.sha256, sample.path)
            )
        except ImageError as error:
            log.warning("left out of the drift of %s: %s", category, error)
    scores = np.asarray(spec.normal_scores)
    return Sightings.of(scores, scores > spec.image_threshold, distances)


def _ask(
    memory: ImageMemory, detector: Detector, category: str, what: _Asked, sha256: str, path: Path
) -> float:
    found = memory.ask(
        (what, detector.digest, category, sha256), partial(_find, detector, category, what, path)
    )
    assert found is not None
    return found


def _find(detector: Detector, category: str, what: _Asked, source: Path | bytes) -> float:
    """Image score, or distance of the embedding from the nearest prompt."""
    image = load_image(source, sample_range=detector.sample_range(category))
    if what == "score":
        return float(detector.predict([image], category=category)[0].score)
    return detector.measure_distances(image)[category]
