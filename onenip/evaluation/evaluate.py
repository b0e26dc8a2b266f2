"""Evaluate the test set, one image at a time: figures, tables and pictures in one folder.

A category is scored by the detector that is given for it: one unified model, or the champion of each.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from tqdm import tqdm

from onenip.data.cache import Cache
from onenip.data.manifest import Sample, read_added, select
from onenip.detector.detector import Detector
from onenip.detector.embedding import Embedder
from onenip.detector.prediction import Prediction
from onenip.errors import DataError
from onenip.evaluation import curves, summary
from onenip.evaluation.category import CategoryScores, CategorySummary, summarize_images
from onenip.evaluation.counts import VerdictCounts
from onenip.evaluation.gallery import Gallery, Picture, write_index
from onenip.evaluation.results import SCORES, ImageResult, write_grids, write_scores
from onenip.images import load_mask, resize_mask
from onenip.params import EvaluateParams


def evaluate_test_set(
    detectors: Mapping[str, Detector],
    samples: Sequence[Sample],
    *,
    params: EvaluateParams,
    seed: int,
    out_dir: Path,
    save_maps: Path | None = None,
    cache: Cache,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Score the test images of some categories and write everything but the report.

    Args:
        detectors: by the category that each is to score.
        samples: of the manifest; other categories and subsets are passed over.
        params: the section `evaluate`.
        seed: of the resampling.
        out_dir: an empty folder, which gets everything; maps are spooled beside it.
        save_maps: also write the float32 map of every test image there, at the image's own size, as
            `<category>/test/<label>/<stem>.tiff`.
        cache: keeps the images' features for the next model with the same backbone.
        facts: further top-level values of `metrics.json`, such as the data version.

    Returns:
        Content of `metrics.json`.

    Raises:
        DataError: if a mask or an image is not as promised.
    """
    rng = np.random.default_rng(seed)
    scored = _Scored()
    tests = [sample for sample in select(samples, subset="test") if sample.category in detectors]
    with (
        _spool_beside(out_dir) as spool,
        tqdm(total=len(tests), desc="evaluate", unit="image", disable=None) as bar,
    ):
        for category, detector in sorted(detectors.items()):
            detector.embedder = detector.embedder or Embedder(detector.network, cache)
            chosen = select(tests, category=category)
            scores, gallery = _score_category(
                detector, chosen, category, params, spool, save_maps, bar
            )
            scored.add(category, scores, params, rng)
            scored.pictures += gallery.write(out_dir, category)
    specs = {name: detector.spec.categories[name] for name, detector in detectors.items()}
    content = summary.describe(
        scored.summaries,
        scored.defects,
        thresholds={
            name: (spec.image_threshold, spec.pixel_threshold) for name, spec in specs.items()
        },
        confidence=params.confidence,
        extra={
            "original": {
                name: original
                for name, results in scored.results.items()
                if (original := _describe_original(results))
            },
            "resolution": params.resolution,
            **facts,
        },
    )
    _write(out_dir, content, scored)
    return content


@contextmanager
def _spool_beside(out_dir: Path) -> Iterator[Path]:
    """An empty folder; of a fixed name, so that the next run removes what a killed one left."""
    spool = out_dir.with_name(f".{out_dir.name.strip('.')}.pixels")
    shutil.rmtree(spool, ignore_errors=True)
    spool.mkdir()
    try:
        yield spool
    finally:
        shutil.rmtree(spool, ignore_errors=True)


def _describe_original(results: Sequence[ImageResult]) -> dict[str, Any]:
    """Figures without the images that people added since, so that lines and months can be compared.

    Empty for a category without such images.
    """
    original = [one for one in results if not read_added(one.name)]
    if len(original) == len(results):
        return {}
    figures, _ = summarize_images(original, None)
    pairs = ((one.is_defective, one.is_anomalous) for one in original)
    return {**VerdictCounts.count(pairs).to_dict(), **summary.to_values(figures)}


class _Scored:
    """Scores of all categories so far."""

    def __init__(self) -> None:
        self.summaries: dict[str, CategorySummary] = {}
        self.defects: dict[str, dict[str, CategorySummary]] = {}
        self.results: dict[str, list[ImageResult]] = {}
        self.pictures: list[Picture] = []

    def add(
        self,
        category: str,
        scores: CategoryScores,
        params: EvaluateParams,
        rng: np.random.Generator,
    ) -> None:
        self.summaries[category] = scores.summarize(draws=params.bootstrap_draws, rng=rng)
        self.defects[category] = {
            kind: scores.summarize(draws=0, rng=rng, defect=kind) for kind in scores.defects
        }
        self.results[category] = scores.results


def _score_category(
    detector: Detector,
    samples: Sequence[Sample],
    category: str,
    params: EvaluateParams,
    spool: Path,
    save_maps: Path | None,
    bar: tqdm[Any],
) -> tuple[CategoryScores, Gallery]:
    scores, gallery = CategoryScores(spool), Gallery(params.pictures)
    for sample in samples:
        image = sample.load_image()
        prediction = detector.predict([image], category=category)[0]
        result = ImageResult(
            name=sample.name,
            category=category,
            label=sample.label,
            score=float(prediction.score),
            threshold=float(prediction.threshold),
        )
        mask = _load_mask(sample, (image.shape[0], image.shape[1]))
        _add_pixels(scores, result, prediction, mask, params)
        gallery.offer(
            result,
            sha256=sample.sha256,
            image=image,
            score_map=prediction.map,
            mask=mask,
            pixel_threshold=prediction.pixel_threshold,
        )
        if save_maps is not None:
            _save_map(save_maps / Path(sample.name).with_suffix(".tiff"), prediction.map)
        bar.update()
    return scores, gallery


def _add_pixels(
    scores: CategoryScores,
    result: ImageResult,
    prediction: Prediction,
    mask: NDArray[np.bool_] | None,
    params: EvaluateParams,
) -> None:
    if params.resolution == "native" or mask is None:
        scores.update(result, prediction.map, mask)
        return
    height, width = prediction.input_map.shape
    scores.update(result, prediction.input_map, resize_mask(mask, (height, width)))


def _load_mask(sample: Sample, size: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Mask of a test image, [H, W] bool; all False for a good one, None if it is not known.

    Raises:
        DataError: if it is of another size than the image.
    """
    if not sample.is_defective:
        return np.zeros(size, dtype=bool)
    if sample.mask is None:
        return None
    mask = load_mask(sample.mask)
    if mask.shape != size:
        found, wanted = (f"{shape[1]}x{shape[0]}" for shape in (mask.shape, size))
        raise DataError(f"{sample.mask}: {found} px, its image {wanted}", path=sample.mask)
    return mask


def _save_map(path: Path, score_map: NDArray[np.float32]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, score_map.astype(np.float32))
    except OSError as error:
        raise DataError(f"{path}: cannot write the map: {error}", path=path) from error


def _write(folder: Path, content: dict[str, Any], scored: _Scored) -> None:
    summary.write_metrics(folder / "metrics.json", content)
    summary.write_metrics(folder / "overview.json", summary.summarise(content))
    write_scores(folder / SCORES, [item for items in scored.results.values() for item in items])
    write_grids(
        folder / "pixel_counts.npz",
        {
            name: (item.grid, item.grid_names)
            for name, item in scored.summaries.items()
            if item.grid is not None
        },
    )
    curves.write_plots(folder / "plots", scored.results)
    write_index(folder, scored.pictures)
