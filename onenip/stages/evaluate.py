"""`evaluate`: the test set scored, one image at a time, and every figure, table and picture of it.

Nothing that is learnt here leaves the stage: thresholds are the model's own.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from onenip.dataset import Sample, list_categories, load_manifest, select
from onenip.detector import Detector, Prediction
from onenip.errors import DataError
from onenip.evaluation import curves, summary
from onenip.evaluation.category import CategoryScores, CategorySummary
from onenip.evaluation.gallery import Gallery, Picture, write_index
from onenip.evaluation.results import ImageResult, write_grids, write_scores
from onenip.images import hash_file, load_image, load_mask
from onenip.params import EvaluateParams, Params
from onenip.report import write_report
from onenip.versioning import read_data_version

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateResult:
    """Content of `metrics.json`, and where it is."""

    folder: Path
    metrics: dict[str, Any]


def run(
    params: Params,
    *,
    model_dir: Path,
    data_dir: Path,
    manifest: Path,
    out_dir: Path,
    save_maps: Path | None = None,
    synthesis_dir: Path | None = None,
    training_dir: Path | None = None,
    champion: Path | None = None,
) -> EvaluateResult:
    """Score the test set and write figures, tables, pictures and the report.

    Args:
        params: everything; `evaluate` is this stage's section.
        model_dir: the trained model.
        data_dir: folder in MVTec layout.
        manifest: CSV that `validate` wrote.
        out_dir: gets everything, at once and at the end.
        save_maps: also write the float32 map of every test image there, at the image's own size, as
            `<category>/test/<label>/<stem>.tiff`.
        synthesis_dir: what `synthesize` wrote, for the report.
        training_dir: curves that `train` wrote, for the report.
        champion: an earlier evaluation's folder or `metrics.json`, for the report.

    Raises:
        DataError: if the manifest, an image or a mask is not as promised.
        CheckpointError: if the model cannot be loaded.
    """
    samples = load_manifest(manifest, data_dir)
    detector = Detector.load(model_dir)
    draft = out_dir.with_name(f".{out_dir.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    rng = np.random.default_rng(params.seed)
    scored = _Evaluated()
    tests = select(samples, subset="test")
    with (
        tempfile.TemporaryDirectory(prefix=".pixels-", dir=out_dir.parent) as spool,
        tqdm(total=len(tests), desc="evaluate", unit="image", disable=None) as bar,
    ):
        for category in sorted({*list_categories(samples), *detector.categories}):
            chosen = select(tests, category=category)
            scores, gallery = _score_category(
                detector, chosen, category, params.evaluate, Path(spool), save_maps, bar
            )
            scored.add(category, scores, params.evaluate, rng)
            scored.pictures += gallery.write(draft, category)
    thresholds = {
        name: (spec.image_threshold, spec.pixel_threshold)
        for name, spec in detector.spec.categories.items()
    }
    content = summary.describe(
        scored.summaries,
        scored.defects,
        thresholds=thresholds,
        confidence=params.evaluate.confidence,
        extra={
            "resolution": params.evaluate.resolution,
            "data_version": read_data_version(pointer=Path(f"{data_dir}.dvc")),
            "manifest_sha256": hash_file(manifest),
            "model_digest": detector.digest,
        },
    )
    _write(draft, content, scored)
    write_report(
        draft,
        draft / "report.html",
        model_dir=model_dir,
        synthesis_dir=synthesis_dir,
        training_dir=training_dir,
        champion=champion,
    )
    shutil.rmtree(out_dir, ignore_errors=True)
    draft.rename(out_dir)
    log.info("figures of %d test images in %s", len(tests), out_dir)
    return EvaluateResult(out_dir, content)


class _Evaluated:
    """What is known of all categories so far."""

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
    if samples and category not in detector.categories:
        known = ", ".join(detector.categories)
        raise DataError(f"{category}: not a category of this model, which knows {known}")
    for sample in samples:
        image = load_image(sample.path)
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
    small = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    scores.update(result, prediction.input_map, np.asarray(small))


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


def _write(draft: Path, content: dict[str, Any], scored: _Evaluated) -> None:
    summary.write_metrics(draft / "metrics.json", content)
    write_scores(
        draft / "scores.csv", [item for items in scored.results.values() for item in items]
    )
    write_grids(
        draft / "pixel_counts.npz",
        {
            name: (item.grid, item.grid_names)
            for name, item in scored.summaries.items()
            if item.grid is not None
        },
    )
    curves.write_plots(draft / "plots", scored.results)
    write_index(draft, scored.pictures)
