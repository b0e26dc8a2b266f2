"""Stage `register`: the model goes to MLflow, and a challenger of every category waits for a person."""

from __future__ import annotations

from pathlib import Path

from onenip.data.dvc import describe_checkout
from onenip.params import Params
from onenip.registry import publishing
from onenip.registry.versions import Version


def run(params: Params, *, model_dir: Path, evaluation_dir: Path) -> list[Version]:
    """Register a model with what the evaluation found.

    Args:
        params: what it was made with.
        model_dir: folder of the model.
        evaluation_dir: folder that the stage `evaluate` wrote.

    Returns:
        The version of each category, sorted by category.

    Raises:
        CheckpointError: if there is no usable model.
        RegistryError: if there are no metrics, or MLflow cannot be reached.
    """
    return publishing.publish(
        model_dir,
        evaluation_dir=evaluation_dir,
        params=params.dump_public(),
        facts=describe_checkout(),
        experiment=params.register_.experiment,
    )
