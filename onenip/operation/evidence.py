"""What champion and challenger say of the same current images of a category, for the gate.

Knows detectors and samples; which limits apply is the gate's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onenip.data.manifest import Sample, select
from onenip.detector.detector import Detector
from onenip.detector.prediction import Prediction
from onenip.evaluation.metrics import PIXEL_NAMES, Figure, PixelScores, resampling
from onenip.images import load_mask, resize_image
from onenip.operation.gate import Answers, Evidence
from onenip.params import GateParams, Params
from onenip.synthesis.bank import build_synthesizer


@dataclass(frozen=True)
class _Case:
    """One image to ask both models about; `mask` is None where it is not known.

    `origin` is the image's name, or for a synthetic anomaly that of the image it was drawn into.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None
    is_defective: bool
    is_compared: bool
    origin: str


def collect_evidence(
    category: str,
    *,
    challenger: Detector,
    champion: Detector | None,
    samples: Sequence[Sample],
    params: Params,
) -> Evidence | None:
    """Answers of both models on a category's test images and held-out normal ones.

    Without defective test images, synthetic anomalies in the normal ones take their place. Both
    models see each image in turn, so that what slows the machine slows both.

    Args:
        category: known to the challenger.
        challenger: the new model.
        champion: the serving model, None if there is none.
        samples: of the current manifest.
        params: limits, and how synthetic anomalies are made.

    Returns:
        The evidence; None if the category has no normal image to judge by.

    Raises:
        ImageError: if an image cannot be read.
    """
    tested = select(samples, category=category, subset="test")
    normals, source, is_held_out = _choose_normals(category, samples, tested)
    if not normals:
        return None
    if champion is not None and category not in champion.categories:
        champion = None
    defects = [sample for sample in tested if sample.is_defective]
    compared = {sample.name for sample in tested} if defects else {s.name for s in normals}
    size = challenger.zoomed_size(category)
    anomalies = [] if defects else _draw_anomalies(normals, params, size=size)
    models = [challenger] if champion is None else [challenger, champion]
    recorders = [_Recorder(category, params.gate) for _ in models]
    facts: list[tuple[bool, bool]] = []
    origins: list[str] = []
    for case in _read(normals, defects, anomalies, compared=compared):
        for model, recorder in zip(models, recorders, strict=True):
            if not facts:
                model.predict([case.image], category=category)  # the first call also warms up
            recorder.add(model.predict([case.image], category=category)[0], case)
        facts.append((case.is_defective, case.is_compared))
        origins.append(case.origin)
    is_defective, is_compared = np.array(facts, dtype=bool).T
    groups = np.unique(origins, return_inverse=True)[1]
    draws = resampling.draw_images(
        is_defective[is_compared],
        groups=groups[is_compared],
        draws=params.gate.draws,
        rng=np.random.default_rng([params.seed, 7]),
    )
    answers = [recorder.finish(draws) for recorder in recorders]
    return Evidence(
        category=category,
        is_defective=is_defective,
        is_compared=is_compared,
        groups=groups,
        is_synthetic=not defects,
        normals=source,
        is_held_out=is_held_out,
        challenger=answers[0],
        champion=answers[1] if champion is not None else None,
    )


class _Recorder:
    """Collects one model's answers; pixel maps go to disk, not to memory."""

    def __init__(self, category: str, params: GateParams) -> None:
        limits = params.limits_of(category)
        asked = {*(limits.floors or {}), *(limits.synthetic_floors or {}), *(limits.margins or {})}
        self._pixels = PixelScores() if asked & set(PIXEL_NAMES) else None
        self._rows: list[tuple[float, bool, float]] = []
        self._has_masks = True

    def add(self, prediction: Prediction, case: _Case) -> None:
        self._rows.append((prediction.score, prediction.is_anomalous, prediction.seconds))
        if self._pixels is not None and case.is_compared:
            if case.mask is None:
                self._has_masks = False
            else:
                self._pixels.update(prediction.map, case.mask)

    def finish(self, draws: NDArray[np.int64]) -> Answers:
        scores, verdicts, seconds = zip(*self._rows, strict=True)
        figures: dict[str, Figure] = {}
        replicates: dict[str, NDArray[np.float64]] = {}
        if self._pixels is not None and self._has_masks:
            figures = self._pixels.compute()
            if not self._pixels.reason:
                replicates = resampling.pixel_replicates(resampling.pixel_grid(self._pixels), draws)
        return Answers(
            scores=np.array(scores, dtype=np.float64),
            is_anomalous=np.array(verdicts, dtype=bool),
            seconds=np.array(seconds, dtype=np.float64),
            pixel_figures=figures,
            pixel_draws=replicates,
        )


def _choose_normals(
    category: str, samples: Sequence[Sample], tested: Sequence[Sample]
) -> tuple[list[Sample], str, bool]:
    """Normal images to count false alarms on, where they come from, whether nothing was fitted."""
    good = [sample for sample in tested if not sample.is_defective]
    kept = select(samples, category=category, subset="holdout")
    if good or kept:
        parts = [f"{len(good)} of the test set"] * bool(good) + [f"{len(kept)} held out"] * bool(
            kept
        )
        return [*good, *kept], ", ".join(parts), True
    return select(samples, category=category, subset="calibration"), "calibration", False


def _draw_anomalies(
    normals: Sequence[Sample], params: Params, *, size: tuple[int, int]
) -> list[_Case]:
    """Synthetic anomalies in the normal images, the same for the same images and seed."""
    synthesizer = build_synthesizer(params.synthesize, size=size, seed=params.seed)
    cases = []
    for sample in normals:
        image = resize_image(sample.load_image(), size)
        rng = np.random.default_rng([params.seed, 8, int(sample.sha256[:12], 16)])
        for _ in range(params.gate.synthetic_per_image):
            drawn = synthesizer.draw(image, rng)
            cases.append(
                _Case(
                    drawn.image, drawn.mask, is_defective=True, is_compared=True, origin=sample.name
                )
            )
    return cases


def _read(
    normals: Sequence[Sample],
    defects: Sequence[Sample],
    anomalies: Sequence[_Case],
    *,
    compared: set[str],
) -> Iterator[_Case]:
    """Cases one at a time: normal images, then defective ones."""
    for sample in (*normals, *defects):
        image = sample.load_image()
        mask = load_mask(sample.mask) if sample.mask else None
        if not sample.is_defective:
            mask = np.zeros(image.shape[:2], dtype=bool)
        yield _Case(image, mask, sample.is_defective, sample.name in compared, sample.name)
    yield from anomalies
