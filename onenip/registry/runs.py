"""Runs in MLflow: created with their facts, found again by the model that they made.

Knows how a run is written and found; knows nothing of threads, kills or servers that are down.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from onenip.evaluation.results import group_figures, load_metrics
from onenip.folders import write_whole
from onenip.images import hash_file
from onenip.registry import store
from onenip.registry.environment import describe_environment, list_packages

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "onenip"
DIGEST_TAG = "onenip.model_digest"
FINGERPRINT_TAG = "onenip.fingerprint"
VALIDATION_FILES = ("summary.json", "quarantine.csv", "manifest.csv")
EVALUATION_TAG = "onenip.evaluation"

_METRICS_PER_REQUEST = 1000  # MLflow's limits of one log_batch
_PARAMS_PER_REQUEST = 100
_PARAM_CHARACTERS = 6000
_DIGEST_CHARACTERS = 36
_CONTEXT = "mlflow.data.context"


class RunRecord(BaseModel):
    """What this checkout remembers of its latest training run.

    Attributes:
        tracking_uri: the store that the run is in.
        run_id: MLflow's identifier; empty until the store was reached.
        experiment: MLflow experiment of the run.
        fingerprint: hash of params, manifest and code; the same means the same training.
        params: dotted names and text.
        tags: data version, Git commit, digest of the model that came out.
        status: MLflow's word: RUNNING, FINISHED, FAILED or KILLED.
        is_sent: whether MLflow holds everything up to that status.
    """

    tracking_uri: str
    run_id: str = ""
    experiment: str
    fingerprint: str
    params: dict[str, str]
    tags: dict[str, str]
    status: str = "RUNNING"
    is_sent: bool = False

    @property
    def digest(self) -> str:
        """Of the model that the training made; empty before that."""
        return self.tags.get(DIGEST_TAG, "")


class Value(BaseModel):
    """One logged number of a run."""

    key: str
    value: float
    step: int
    timestamp_ms: int


def read_record(folder: Path) -> RunRecord | None:
    """The record in a folder; None if there is none, or it is not whole."""
    try:
        return RunRecord.model_validate_json((folder / "run.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write_record(folder: Path, record: RunRecord) -> None:
    """Write a record so that a kill leaves the old one or the new one."""
    with write_whole(folder / "run.json") as draft:
        draft.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")


def create_run(client: MlflowClient, record: RunRecord) -> str:
    """Identifier of a new run that holds a record's params and tags, and the environment.

    Raises:
        mlflow.exceptions.MlflowException: if the store cannot be reached.
        RegistryError: if the experiment cannot be had.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    experiment_id = store.ensure_experiment(client, record.experiment)
    backbone = record.params.get("model.backbone", "model")
    data, commit = (record.tags.get(key, "unknown") for key in ("data_version", "git_commit"))
    tags = {
        "mlflow.note.content": f"One detector for all categories: data {data}, commit {commit[:12]}.",
        **describe_environment(),
        **record.tags,
        FINGERPRINT_TAG: record.fingerprint,
    }
    name = f"train {backbone} on data {data[:7]}"
    run_id = str(client.create_run(experiment_id, run_name=name, tags=tags).info.run_id)
    dataset = Dataset("data", data[:_DIGEST_CHARACTERS], "local", json.dumps({"uri": "data"}))
    client.log_inputs(run_id, datasets=[DatasetInput(dataset, [InputTag(_CONTEXT, "training")])])
    params = [Param(key, value[:_PARAM_CHARACTERS]) for key, value in record.params.items()]
    for start in range(0, len(params), _PARAMS_PER_REQUEST):
        client.log_batch(run_id, params=params[start : start + _PARAMS_PER_REQUEST])
    client.log_text(run_id, list_packages(), "environment/requirements.txt")
    return run_id


def send_values(client: MlflowClient, run_id: str, values: Sequence[Value]) -> None:
    """Log numbers in as few requests as MLflow allows."""
    from mlflow.entities import Metric

    metrics = [Metric(item.key, item.value, item.timestamp_ms, item.step) for item in values]
    for start in range(0, len(metrics), _METRICS_PER_REQUEST):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_REQUEST])


def send_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags in one request."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def last_steps(client: MlflowClient, run_id: str) -> dict[str, int]:
    """The last step that a run holds of each of its metrics."""
    keys = client.get_run(run_id).data.metrics
    return {
        key: max(metric.step for metric in client.get_metric_history(run_id, key)) for key in keys
    }


def find_run(client: MlflowClient, digest: str, *, experiment: str = EXPERIMENT) -> str | None:
    """Identifier of the latest run that made the model with this digest, None if none did.

    Raises:
        RegistryError: if the store cannot be reached.
    """
    experiment_id = store.ensure_experiment(client, experiment)
    with store.refusals(f"run of model {digest[:12]}"):
        found = client.search_runs(
            [experiment_id],
            filter_string=f"tags.`{DIGEST_TAG}` = '{digest}'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
    return str(found[0].info.run_id) if found else None


def find_page(*, experiment: str = EXPERIMENT) -> str | None:
    """Address of the page of all runs in MLflow, their experiment made if missing; None without a server.

    Raises:
        RegistryError: if the store cannot be reached, or somebody deleted the experiment.
    """
    if store.is_local(store.tracking_uri()):
        return None
    return store.address_page(store.ensure_experiment(store.connect(), experiment))


def name_group(category: str) -> str:
    """A category's name in those of metrics; `_` where MLflow refuses a character, then with a digest."""
    allowed = re.sub(r"[^\w. -]", "_", category)
    if allowed == category:
        return category
    return f"{allowed}-{hashlib.sha256(category.encode()).hexdigest()[:6]}"


def log_evaluation(client: MlflowClient, run_id: str, folder: Path) -> None:
    """Log what `onenip evaluate` wrote: metrics per category and mean, report and pictures.

    What `onenip validate` wrote beside it goes along, if it is what was evaluated: its summary and
    what it left out.

    Done once per content of `metrics.json`: asking again changes nothing.

    Args:
        client: of the store that holds the run.
        run_id: the run.
        folder: `artifacts/evaluation`.

    Raises:
        DataError: if there are no metrics.
        RegistryError: if the store cannot be reached.
    """
    content = load_metrics(folder)
    metrics = group_figures(content)
    digest = hashlib.sha256(json.dumps(metrics, sort_keys=True).encode()).hexdigest()
    with store.refusals(f"metrics of run {run_id}"):
        run = client.get_run(run_id)
        if run.data.tags.get(EVALUATION_TAG) == digest:
            return
        now = run.info.start_time
        folders = {
            group: "test" if group == "mean" else f"test/{name_group(group)}" for group in metrics
        }
        values = [
            Value(key=f"{folders[group]}/{name}", value=value, timestamp_ms=now, step=0)
            for group, figures in metrics.items()
            for name, value in figures.items()
        ]
        send_values(client, run_id, values)
        client.log_artifacts(run_id, str(folder), "evaluation")
        for file in _find_validation(folder, content):
            client.log_artifact(run_id, str(file), "validation")
        send_tags(client, run_id, {EVALUATION_TAG: digest})


def _find_validation(folder: Path, metrics: Mapping[str, Any]) -> list[Path]:
    """What `validate` wrote beside an evaluation, where its manifest is the one that was evaluated."""
    beside = folder.parent / "validation"
    manifest = beside / "manifest.csv"
    if not manifest.is_file() or metrics.get("manifest_sha256") != hash_file(manifest):
        return []
    return [beside / name for name in VALIDATION_FILES if (beside / name).is_file()]
