"""`train`: train and calibrate one model for all categories."""

from __future__ import annotations

import csv
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onenip.data import dvc
from onenip.data.cache import Cache
from onenip.data.manifest import load_manifest, select
from onenip.data.outputs import OUTPUTS
from onenip.folders import replace_folder
from onenip.images import hash_file
from onenip.params import Params
from onenip.params.reading import read_yaml
from onenip.registry.tracking import training_run
from onenip.synthesis import bank as synthetic_bank
from onenip.training.checkpoint import discard_checkpoint
from onenip.training.fit import FitResult, fit_detector, start_fabric
from onenip.training.loop import OnLog
from onenip.version import __version__

# sections that the model depends on
_SHAPING = ("seed", "data", "synthesize", "model", "train", "calibrate")

_TRIAL_COLUMNS = ("step", "image_auroc", "pixel_ap", "score")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """The model's categories and digest; the digest is empty in all processes but the first."""

    digest: str
    categories: tuple[str, ...]


def run(
    params: Params,
    *,
    data_dir: Path,
    manifest: Path,
    synthesis_dir: Path,
    out_dir: Path,
    curves_dir: Path,
) -> TrainResult:
    """Train, calibrate and write the model; resumes a killed training."""
    params = _choose_initial_weights(params)
    fabric = start_fabric(params.train)
    samples = load_manifest(manifest, data_dir)
    bank = synthetic_bank.read(synthesis_dir)
    provenance = {
        "onenip_version": __version__,
        "data_version": dvc.read_data_version(),
        "manifest_sha256": hash_file(manifest),
        "params": {key: value for key, value in params.dump().items() if key in _SHAPING},
        "calibration_images": {s.name: s.sha256 for s in select(samples, subset="calibration")},
        "real_defects": len(select(samples, subset="defect")) if params.train.real_defects else 0,
    }

    cache = Cache(OUTPUTS.cache, max_gib=params.cache.max_gib)

    def fit(on_log: OnLog) -> FitResult:
        return fit_detector(
            params,
            samples=samples,
            bank=bank,
            provenance=provenance,
            checkpoint_dir=OUTPUTS.checkpoint,
            cache=cache,
            on_log=on_log,
            progress=sys.stderr.isatty() and fabric.is_global_zero,
            fabric=fabric,
        )

    if not fabric.is_global_zero:  # of several processes that train together the first one writes
        logging.getLogger("onenip").setLevel(logging.ERROR)
        return TrainResult("", fit(lambda _step, _values: None).detector.categories)
    with training_run(
        params.dump_public(),
        manifest=manifest,
        tags=dvc.describe_checkout(),
        experiment=params.register_.experiment,
    ) as tracked:
        result = fit(tracked.log)
        with replace_folder(curves_dir) as draft:
            history = result.record.history
            _write_table(draft / "curves.csv", history, list(history[0]))
            _write_table(draft / "selection.csv", result.record.trials, _TRIAL_COLUMNS)
        result.detector.save(out_dir)
        discard_checkpoint(OUTPUTS.checkpoint)
        cache.prune()
        tracked.name_model(result.detector.digest)
    log.info("model %s in %s", result.detector.digest[:12], out_dir)
    return TrainResult(result.detector.digest, result.detector.categories)


def _choose_initial_weights(params: Params) -> Params:
    """Params that start from the folder that the latest retraining wrote down, if it did."""
    path = OUTPUTS.retraining
    folder = read_yaml(path).get("warm_start") if path.is_file() else None
    if folder is None:
        return params
    return params.model_copy(
        update={"train": params.train.model_copy(update={"warm_start": folder})}
    )


def _write_table(path: Path, rows: Sequence[dict[str, float]], columns: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
