"""The evaluation that belongs to a run or to a registered model, fetched from where MLflow keeps it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from onenip.errors import RegistryError
from onenip.evaluation.results import REPORT, SCORES, ImageResult, load_scores
from onenip.model.file import hash_model
from onenip.registry import runs, store
from onenip.registry.versions import find_addressed

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACTS = "evaluation"
CHAMPION_REPORT = "champion_report"


def fetch_evaluation(reference: str, folder: Path) -> Path:
    """Folder with an evaluation's files, downloaded.

    Args:
        reference: an MLflow run id, `models:/onenip-C/NUMBER` or `models:/onenip-C@ALIAS`.
        folder: where to put it.

    Raises:
        RegistryError: if there is no such run or version, it has no evaluation, or the store cannot
            be reached.
    """
    client = store.connect()
    with store.refusals(reference):
        run_id = _find_run(client, reference)
        if not client.list_artifacts(run_id, ARTIFACTS):
            raise RegistryError(f"{reference}: run {run_id} holds no evaluation")
        folder.mkdir(parents=True, exist_ok=True)
        return Path(client.download_artifacts(run_id, ARTIFACTS, str(folder)))


def fetch_scores(run_id: str) -> list[ImageResult]:
    """Scores of the test images in a run's evaluation.

    Raises:
        RegistryError: if the run has no evaluation, or the store cannot be reached.
        DataError: if they are not what `onenip evaluate` writes.
    """
    client = store.connect()
    with tempfile.TemporaryDirectory() as folder, store.refusals(f"evaluation of run {run_id}"):
        names = client.list_artifacts(run_id, ARTIFACTS) if run_id else []
        if not any(Path(one.path).name == SCORES for one in names):
            raise RegistryError(f"run {run_id or 'unknown'} holds no scores of an evaluation")
        return load_scores(Path(client.download_artifacts(run_id, f"{ARTIFACTS}/{SCORES}", folder)))


def publish_report(model_dir: Path, report: Path, *, experiment: str) -> str | None:
    """Log the report to sign of a model, and say where it can be seen.

    Args:
        model_dir: the model, registered.
        report: the HTML file.
        experiment: MLflow experiment of the model's run.

    Returns:
        As `find_report`.

    Raises:
        RegistryError: if no run made this model, or the store cannot be reached.
    """
    client = store.connect()
    digest = hash_model(model_dir)
    run_id = runs.find_run(client, digest, experiment=experiment)
    if run_id is None:
        raise RegistryError(f"no run of model {digest[:12]} in experiment {experiment}")
    with store.refusals(f"report of run {run_id}"):
        text = report.read_text(encoding="utf-8")
        client.log_text(run_id, text, f"{CHAMPION_REPORT}/{REPORT}")
    return find_report(run_id)


def find_report(run_id: str) -> str | None:
    """Address of a run's report in MLflow's pages, of the one to sign if there is one.

    None where MLflow has no server, or the run holds no report.

    Raises:
        RegistryError: if the store cannot be reached.
    """
    client = store.connect()
    if store.is_local(store.tracking_uri()) or not run_id:
        return None
    with store.refusals(f"report of run {run_id}"):
        for folder in (CHAMPION_REPORT, ARTIFACTS):
            path = f"{folder}/{REPORT}"
            if path in {item.path for item in client.list_artifacts(run_id, folder)}:
                experiment_id = client.get_run(run_id).info.experiment_id
                return store.address_page(experiment_id, f"/runs/{run_id}/artifacts/{path}")
    return None


def _find_run(client: MlflowClient, reference: str) -> str:
    if not reference.startswith("models:/"):
        return str(client.get_run(reference).info.run_id)
    version = find_addressed(reference)
    if not version.run_id:
        raise RegistryError(f"{reference}: this version names no run")
    return version.run_id
