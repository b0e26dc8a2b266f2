"""`evaluate`: the test set scored, one image at a time, and every figure, table and picture of it.

Nothing that is learnt here leaves the stage: thresholds are the model's own.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onenip.data.cache import Cache
from onenip.data.dvc import read_data_version
from onenip.data.manifest import load_manifest, select
from onenip.data.outputs import OUTPUTS
from onenip.detector.detector import Detector
from onenip.errors import UnknownCategoryError
from onenip.evaluation.evaluate import evaluate_test_set
from onenip.evaluation.report import write_report
from onenip.evaluation.results import REPORT
from onenip.folders import replace_folder
from onenip.images import hash_file
from onenip.params import Params

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
        champion: folder of the evaluation that stands beside this one in the report.

    Raises:
        DataError: if the manifest, an image or a mask is not as promised.
        CheckpointError: if the model cannot be loaded.
    """
    samples = load_manifest(manifest, data_dir)
    detector = Detector.load(model_dir)
    tests = select(samples, subset="test")
    for name in sorted({sample.category for sample in tests} - set(detector.categories)):
        raise UnknownCategoryError(name, detector.categories)
    cache = Cache(out_dir.parent / OUTPUTS.cache.name, max_gib=params.cache.max_gib)
    with replace_folder(out_dir) as draft:
        content = evaluate_test_set(
            dict.fromkeys(detector.categories, detector),
            samples,
            params=params.evaluate,
            seed=params.seed,
            out_dir=draft,
            save_maps=save_maps,
            cache=cache,
            facts={
                "training_normals": {
                    name: len(select(samples, category=name)) - len(select(tests, category=name))
                    for name in detector.categories
                },
                "data_version": read_data_version(pointer=Path(f"{data_dir}.dvc")),
                "manifest_sha256": hash_file(manifest),
                "model_digest": detector.digest,
            },
        )
        write_report(
            draft,
            draft / REPORT,
            model_dir=model_dir,
            data_dir=data_dir,
            synthesis_dir=synthesis_dir,
            training_dir=training_dir,
            champion=[champion] if champion else (),
        )
    cache.prune()
    for name, texts in content["doubts"].items():
        for text in texts:
            log.warning("%s: %s", name, text)
    log.info("figures of %d test images in %s", len(tests), out_dir)
    return EvaluateResult(out_dir, content)
