"""Stage `register`: store the model in MLflow, with a challenger of every category for approval."""

from __future__ import annotations

from pathlib import Path

from onenip.detector.detector import Detector
from onenip.params import Params
from onenip.registry import publishing
from onenip.registry.tags import Version


def run(params: Params, *, model_dir: Path, evaluation_dir: Path) -> list[Version]:
    """Register a model with its evaluation, and with the data, code and params that it says it is of.

    Args:
        params: names the MLflow experiment; nothing else of it is said about the model.
        model_dir: folder of the model.
        evaluation_dir: folder that the stage `evaluate` wrote.

    Returns:
        The version of each category, sorted by category.

    Raises:
        CheckpointError: if there is no usable model.
        DataError: if there are no metrics, or they are another model's.
        RegistryError: if MLflow cannot be reached.
    """
    detector = Detector.load(model_dir)
    experiment = params.register_.experiment
    return publishing.publish(
        model_dir,
        evaluation_dir=evaluation_dir,
        params=detector.spec.provenance.get("params", {}),
        facts=publishing.describe_origin(detector, experiment=experiment),
        experiment=experiment,
    )
