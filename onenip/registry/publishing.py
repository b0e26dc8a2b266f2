"""The unified model stored once in MLflow, and per category a registered version that points at it.

A version holds no weights: only category, prompt picture, threshold, digest and the address of the
unified model. Publishing the same model again changes nothing.
"""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from onenip.errors import DataError, RegistryError
from onenip.evaluation.results import group_figures, load_metrics
from onenip.registry import runs, store, tracking
from onenip.registry.decisions import ITSELF, Intent, Step, deciding
from onenip.registry.environment import flatten
from onenip.registry.pointer_schema import pointer_signature
from onenip.registry.runs import RunRecord
from onenip.registry.versions import (
    CHALLENGER,
    CHAMPION,
    PROVISIONAL,
    Approval,
    Metrics,
    Version,
    approval_command,
    find_version,
    list_versions,
    read_aliases,
    registered_name,
    to_tags,
)
from onenip.version import __version__

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

    from onenip.detector.detector import Detector

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "onenip"
POINTER_CODE = Path(__file__).with_name("pointer_code.py")

_DIGEST = "onenip.digest"


def publish(
    model_dir: Path,
    *,
    evaluation_dir: Path,
    params: Mapping[str, Any],
    facts: Mapping[str, str],
    experiment: str = runs.EXPERIMENT,
    by: str = "pipeline",
) -> list[Version]:
    """Store a model and make it the challenger of each of its categories.

    A category whose champion, or whose rejected version, is this very model keeps its aliases.

    Args:
        model_dir: folder of the model, as `onenip train` writes it.
        evaluation_dir: what `onenip evaluate` wrote about it.
        params: nested values that it was made with.
        facts: tags for every version, such as `data_version` and `git_commit`.
        experiment: MLflow experiment of the run.
        by: who publishes, for the audit trail.

    Returns:
        The version of each category, sorted by category.

    Raises:
        DataError: if there are no metrics, or they are another model's.
        RegistryError: if MLflow cannot be reached.
        CheckpointError: if the folder holds no usable model.
    """
    from onenip.detector.detector import Detector

    detector = Detector.load(model_dir)
    content = load_metrics(evaluation_dir)
    check_evaluation(content, detector.digest, folder=evaluation_dir)
    metrics = group_figures(content)
    client = store.connect(create=True)
    run_id = _ensure_run(client, detector.digest, params=params, facts=facts, experiment=experiment)
    runs.log_evaluation(client, run_id, evaluation_dir)
    weights_uri = _ensure_weights(client, model_dir, detector, run_id=run_id, experiment=experiment)
    return [
        _ensure_version(
            client,
            detector,
            category,
            weights_uri=weights_uri,
            run_id=run_id,
            metrics=metrics.get(category, {}),
            facts=dict(facts),
            by=by,
        )
        for category in sorted(detector.categories)
    ]


def publish_provisional(
    model_dir: Path,
    *,
    images: Mapping[str, int],
    built_on: Version,
    facts: Mapping[str, str],
    experiment: str = runs.EXPERIMENT,
) -> list[Version]:
    """Store a model with categories that it was never trained on, to stand in until they have champions.

    A category that got a champion meanwhile is left alone.

    Args:
        model_dir: folder of the model.
        images: how many normal images each of these categories was added from.
        built_on: the approved version whose model the categories were added to.
        facts: tags for every version, with `made_from`.
        experiment: MLflow experiment of the run.

    Returns:
        The version of each category that it stands in for, sorted by category.

    Raises:
        RegistryError: if MLflow cannot be reached.
        CheckpointError: if the folder holds no usable model.
    """
    from onenip.detector.detector import Detector

    detector = Detector.load(model_dir)
    client = store.connect(create=True)
    run_id = _ensure_run(client, detector.digest, params={}, facts=facts, experiment=experiment)
    weights_uri = _ensure_weights(client, model_dir, detector, run_id=run_id, experiment=experiment)
    found = []
    for category, count in sorted(images.items()):
        _ensure_registered(client, registered_name(category), category)
        with deciding(category) as held:
            aliases = read_aliases(category)
            if CHAMPION in aliases:
                continue
            intent = Intent(
                action="provisional",
                version=ITSELF,
                by="pipeline",
                reason=f"from {count} normal images, without training, on the model of "
                f"{built_on.category} version {built_on.number}",
                digest=detector.digest,
                steps=(Step(alias=PROVISIONAL, version=ITSELF),),
            )
            version, is_new = _find_or_create(
                client,
                detector,
                category,
                weights_uri=weights_uri,
                run_id=run_id,
                metrics={},
                tags={**facts, intent.tag: intent.model_dump_json()},
                approval="provisional",
            )
            if aliases.get(PROVISIONAL) != version.number:
                held.carry_out(intent.about(version.number), is_written=is_new)
        found.append(find_version(category, version.number))
    return found


def check_evaluation(metrics: Mapping[str, Any], digest: str, *, folder: Path) -> None:
    """Make sure that an evaluation is about a model.

    Raises:
        DataError: if it is about another one.
    """
    evaluated = metrics.get("model_digest")
    if evaluated is None:
        logger.warning("%s: metrics.json does not name the model that was evaluated", folder)
    elif evaluated != digest:
        raise DataError(
            f"{folder}: evaluated was model {str(evaluated)[:12]}, not {digest[:12]}; run `onenip "
            "evaluate` with this model",
            path=folder,
        )


def describe_origin(detector: Detector, *, experiment: str) -> dict[str, str]:
    """Which data and code a model was trained with, as it and its training's run say.

    Returns:
        `data_version`, `git_commit` and `git_dirty`; "unknown" for what nobody knows.

    Raises:
        RegistryError: if MLflow cannot be reached.
    """
    client = store.connect(create=True)
    record = tracking.deliver()
    tags: Mapping[str, str] = {}
    if record is not None and record.digest == detector.digest:
        tags = record.tags
    elif run_id := runs.find_run(client, detector.digest, experiment=experiment):
        with store.refusals(f"run {run_id}"):
            tags = client.get_run(run_id).data.tags
    facts = {name: tags.get(name, "unknown") for name in ("git_commit", "git_dirty")}
    data = detector.spec.provenance.get("data_version") or tags.get("data_version")
    return {"data_version": data or "unknown", **facts}


@contextmanager
def fetched_weights(weights_uri: str) -> Iterator[Path]:
    """Folder with a copy of the unified model that a version points at, for the length of a block.

    Raises:
        RegistryError: if it is gone, or MLflow cannot be reached.
    """
    store.connect()
    import mlflow

    with tempfile.TemporaryDirectory(prefix="onenip-model-") as scratch:
        with store.refusals(f"model {weights_uri}"):
            try:
                folder = mlflow.artifacts.download_artifacts(weights_uri, dst_path=scratch)
            except OSError as error:
                raise RegistryError(f"model {weights_uri}: {error}") from error
        yield Path(folder)


def hash_stored(weights_uri: str) -> str:
    """Digest of the model behind an address as it is stored now, equal to `Detector.digest` of it.

    Raises:
        RegistryError: if it holds no model, or as for `fetched_weights`.
    """
    from onenip.model.file import hash_model

    with fetched_weights(weights_uri) as folder:
        try:
            return hash_model(folder)
        except OSError as error:
            raise RegistryError(f"model {weights_uri}: no model: {error.strerror}") from error


def load_pinned(weights_uri: str, digest: str) -> Detector:
    """The unified model behind an address, if it is still the one with this digest.

    Raises:
        RegistryError: if it is another, is damaged or gone, or MLflow cannot be reached.
    """
    from onenip.detector.detector import Detector
    from onenip.errors import CheckpointError

    try:
        with fetched_weights(weights_uri) as folder:
            detector = Detector.load(folder)
    except CheckpointError as error:
        raise RegistryError(f"model {weights_uri} was changed or damaged: {error}") from error
    if detector.digest != digest:
        raise RegistryError(
            f"model {weights_uri}: its digest is {detector.digest[:12]}, pinned is {digest[:12]}; "
            "it was changed and is not used"
        )
    return detector


def _ensure_run(
    client: MlflowClient,
    digest: str,
    *,
    params: Mapping[str, Any],
    facts: Mapping[str, str],
    experiment: str,
) -> str:
    """The run that trained this model; a new one if the model came from elsewhere."""
    tracking.deliver()
    run_id = runs.find_run(client, digest, experiment=experiment)
    if run_id is None:
        record = RunRecord(
            tracking_uri=store.tracking_uri(),
            experiment=experiment,
            fingerprint=digest,
            params=flatten(params),
            tags={runs.DIGEST_TAG: digest},
        )
        with store.refusals("run of the model"):
            run_id = runs.create_run(client, record)
            client.set_terminated(run_id)
    with store.refusals(f"run {run_id}"):
        runs.send_tags(client, run_id, facts)
    return run_id


def _ensure_weights(
    client: MlflowClient, model_dir: Path, detector: Detector, *, run_id: str, experiment: str
) -> str:
    """Address of the stored model with this digest, stored now if it is not there yet."""
    experiment_id = store.ensure_experiment(client, experiment)
    with store.refusals("model"):
        found = client.search_logged_models(
            [experiment_id], filter_string=f"tags.`{_DIGEST}` = '{detector.digest}'"
        )
        ready = [model for model in found if str(model.status) == "READY"]
    if ready:
        return str(ready[0].model_uri)
    tags = {_DIGEST: detector.digest, "onenip.categories": ", ".join(detector.categories)}
    model = _store_folder(client, model_dir, name=WEIGHTS_NAME, run_id=run_id, tags=tags)
    return str(model.model_uri)


def _ensure_version(
    client: MlflowClient,
    detector: Detector,
    category: str,
    *,
    weights_uri: str,
    run_id: str,
    metrics: Metrics,
    facts: dict[str, str],
    by: str,
) -> Version:
    _ensure_registered(client, registered_name(category), category)
    intent = Intent(
        action="register",
        version=ITSELF,
        by=by,
        reason=f"data {facts.get('data_version', 'unknown')}, commit {facts.get('git_commit', '')[:12]}",
        digest=detector.digest,
        steps=(Step(alias=CHALLENGER, version=ITSELF),),
    )
    with deciding(category) as held:
        version, is_new = _find_or_create(
            client,
            detector,
            category,
            weights_uri=weights_uri,
            run_id=run_id,
            metrics=metrics,
            tags={**facts, intent.tag: intent.model_dump_json()},
            approval="pending",
        )
        waits = version.approval == "pending" and not version.aliases
        if is_new or (waits and _is_newest(version)):
            held.carry_out(intent.about(version.number), is_written=is_new)
    return find_version(category, version.number)


def _is_newest(version: Version) -> bool:
    known = [v for v in list_versions(version.category) if v.approval != "provisional"]
    return all(other.number <= version.number for other in known)


def _find_or_create(
    client: MlflowClient,
    detector: Detector,
    category: str,
    *,
    weights_uri: str,
    run_id: str,
    metrics: Metrics,
    tags: dict[str, str],
    approval: Approval,
) -> tuple[Version, bool]:
    """The version of a category with this model, and whether it is new. The caller holds the lock."""
    name = registered_name(category)
    known = list_versions(category)
    version = next((v for v in reversed(known) if v.digest == detector.digest), None)
    if version is not None:
        return version, False
    all_tags = to_tags(
        digest=detector.digest,
        weights_uri=weights_uri,
        metrics=metrics,
        facts=tags,
        approval=approval,
    )
    model = _store_pointer(client, detector, category, weights_uri=weights_uri, run_id=run_id)
    with store.refusals(name):
        created = client.create_model_version(
            name, source=model.model_uri, run_id=run_id, tags=all_tags, model_id=model.model_id
        )
    logger.info("%s: version %s", name, created.version)
    return find_version(category, int(created.version)), True


def _ensure_registered(client: MlflowClient, name: str, category: str) -> None:
    from mlflow.exceptions import MlflowException

    with store.refusals(name):
        try:
            client.create_registered_model(
                name,
                tags={"onenip.category": category},
                description=f"Which version of the unified detector serves {category}. "
                f"Approve with `{approval_command(category)}`.",
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def _store_pointer(
    client: MlflowClient, detector: Detector, category: str, *, weights_uri: str, run_id: str
) -> LoggedModel:
    """Store what MLflow serves for a category: code, settings and prompt picture; no weights."""
    import mlflow

    spec = detector.spec.categories[category]
    with tempfile.TemporaryDirectory() as scratch:
        prompt = Path(scratch) / "prompt.png"
        Image.fromarray(detector.prompt_images(category)[0]).save(prompt)
        folder = Path(scratch) / "pointer"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # advice about input examples
            mlflow.pyfunc.save_model(
                str(folder),
                python_model=str(POINTER_CODE),
                model_config={
                    "category": category,
                    "weights_uri": weights_uri,
                    "digest": detector.digest,
                    "prompts": list(spec.prompt_names),
                },
                artifacts={"prompt": str(prompt)},
                signature=pointer_signature(),
                pip_requirements=[f"onenip[full]=={__version__}"],
            )
        name = registered_name(category)
        tags = {"onenip.points_at": weights_uri}
        return _store_folder(client, folder, name=name, run_id=run_id, tags=tags)


def _store_folder(
    client: MlflowClient, folder: Path, *, name: str, run_id: str, tags: dict[str, str]
) -> LoggedModel:
    """Upload a folder as a model of a run; it counts as ready only when it is whole."""
    with store.refusals(f"model {name}"):
        experiment_id = client.get_run(run_id).info.experiment_id
        model = client.create_logged_model(
            experiment_id,
            name=re.sub(r"""[/:.%"']""", "_", name),  # a label; MLflow refuses these
            source_run_id=run_id,
            tags=tags,
            model_type="onenip",
        )
        client.log_model_artifacts(model.model_id, str(folder))
        return client.finalize_logged_model(model.model_id, "READY")
