"""The evaluation that belongs to a run or to a registered model, fetched from where MLflow keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from onenip.errors import RegistryError
from onenip.registry import store

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACTS = "evaluation"
_SCHEME = "models:/"


def fetch_evaluation(reference: str, folder: Path) -> Path:
    """Folder with an evaluation's files, downloaded.

    Args:
        reference: an MLflow run id, `models:/NAME/VERSION` or `models:/NAME@ALIAS`.
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


def _find_run(client: MlflowClient, reference: str) -> str:
    if not reference.startswith(_SCHEME):
        return str(client.get_run(reference).info.run_id)
    name = reference.removeprefix(_SCHEME)
    if "@" in name:
        name, alias = name.rsplit("@", 1)
        version = client.get_model_version_by_alias(name, alias)
    elif "/" in name:
        name, number = name.rsplit("/", 1)
        version = client.get_model_version(name, number)
    else:
        raise RegistryError(f"{reference}: neither models:/NAME/VERSION nor models:/NAME@ALIAS")
    if not version.run_id:
        raise RegistryError(f"{reference}: this version names no run")
    return str(version.run_id)
