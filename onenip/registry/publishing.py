"""The unified model stored once in MLflow, and per category a registered version that points at it.

A version holds no weights: only category, prompt picture, threshold, digest and the address of the
unified model. Publishing the same model again changes nothing.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from onenip.errors import DataError
from onenip.evaluation.counts import describe_wrong
from onenip.evaluation.results import group_figures, load_metrics
from onenip.printing import plain
from onenip.registry import runs, store, tracking
from onenip.registry.audit import Action
from onenip.registry.decisions import ITSELF, Deciding, Intent, Step, deciding
from onenip.registry.environment import flatten
from onenip.registry.evaluations import find_report
from onenip.registry.lock import hold_lock
from onenip.registry.pointer_schema import pointer_signature
from onenip.registry.runs import RunRecord
from onenip.registry.tags import Approval, Metrics, Version, registered_name, to_tags
from onenip.registry.versions import (
    CHALLENGER,
    CHAMPION,
    PROVISIONAL,
    approval_command,
    find_version,
    list_versions,
    read_aliases,
)
from onenip.registry.weights import store_folder, store_weights
from onenip.version import __version__

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

    from onenip.detector.detector import Detector

logger = logging.getLogger(__name__)

POINTER_CODE = Path(__file__).with_name("pointer_code.py")


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
    publication = _store(model_dir, detector, params=params, facts=facts, experiment=experiment)
    runs.log_evaluation(publication.client, publication.run_id, evaluation_dir)
    return [
        publication.ensure_challenger(category, metrics=metrics.get(category, {}), by=by)
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
    publication = _store(model_dir, detector, params={}, facts=facts, experiment=experiment)
    found = [
        publication.ensure_stand_in(
            category,
            reason=f"from {count} normal images, without training, on the model of "
            f"{built_on.category} version {built_on.number}",
        )
        for category, count in sorted(images.items())
    ]
    return [version for version in found if version is not None]


def check_evaluation(metrics: Mapping[str, Any], digest: str, *, folder: Path) -> None:
    """Make sure that an evaluation is about a model.

    Raises:
        DataError: if it is about another one, or does not say about which.
    """
    evaluated = metrics.get("model_digest")
    if evaluated != digest:
        about = (
            f"about model {str(evaluated)[:12]}" if evaluated else "about no model that it names"
        )
        raise DataError(
            f"{folder}: the evaluation is not that of model {digest[:12]}, but {about}; run `onenip "
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


@dataclass(frozen=True)
class _Publication:
    """A model that is stored, and what all versions that point at it have in common.

    Attributes:
        client: of the store.
        detector: the model.
        run_id: the run that made it.
        weights_uri: where it is stored.
        facts: tags for every version.
    """

    client: MlflowClient
    detector: Detector
    run_id: str
    weights_uri: str
    facts: Mapping[str, str]

    def ensure_challenger(self, category: str, *, metrics: Metrics, by: str) -> Version:
        """The version of a category, waiting for a decision if nobody decided about this model yet."""
        _ensure_registered(self.client, category)
        data = self.facts.get("data_version", "unknown")
        reason = f"data {data}, commit {self.facts.get('git_commit', '')[:12]}"
        intent = self._intend("register", CHALLENGER, by=by, reason=reason)
        with deciding(category) as held:
            version = self._find(category)
            if version is None:
                version = self._create(category, held, intent, metrics, "pending")
            elif version.approval != "pending" or version.aliases or not _is_newest(version):
                return version
            held.carry_out(intent.about(version.number))
        return find_version(category, version.number)

    def ensure_stand_in(self, category: str, *, reason: str) -> Version | None:
        """The provisional version of a category; None if it has a champion."""
        _ensure_registered(self.client, category)
        intent = self._intend("provisional", PROVISIONAL, by="pipeline", reason=reason)
        with deciding(category) as held:
            aliases = read_aliases(category)
            if CHAMPION in aliases:
                return None
            version = self._find(category) or self._create(
                category, held, intent, {}, "provisional"
            )
            if aliases.get(PROVISIONAL) != version.number:
                held.carry_out(intent.about(version.number))
        return find_version(category, version.number)

    def _intend(self, action: Action, alias: str, *, by: str, reason: str) -> Intent:
        """To give the version that will be made or found an alias."""
        return Intent(
            action=action,
            version=ITSELF,
            by=by,
            reason=reason,
            digest=self.detector.digest,
            steps=(Step(alias=alias, version=ITSELF),),
        )

    def _find(self, category: str) -> Version | None:
        """A category's version of this model, None if there is none."""
        known = [v for v in list_versions(category) if v.digest == self.detector.digest]
        return known[-1] if known else None

    def _create(
        self, category: str, held: Deciding, intent: Intent, metrics: Metrics, approval: Approval
    ) -> Version:
        """A new version of a category, with the intent to give it its alias written before."""
        held.intend(intent)
        name = registered_name(category)
        tags = to_tags(
            digest=self.detector.digest,
            weights_uri=self.weights_uri,
            metrics=metrics,
            facts=self.facts,
            approval=approval,
        )
        model = self._store_pointer(category)
        with store.refusals(name):
            created = self.client.create_model_version(
                name,
                source=model.model_uri,
                run_id=self.run_id,
                tags=tags,
                model_id=model.model_id,
                description=_describe(metrics, self.run_id),
            )
        logger.info("%s: version %s", name, created.version)
        return find_version(category, int(created.version))

    def _store_pointer(self, category: str) -> LoggedModel:
        """Store what MLflow serves for a category: code, settings and prompt picture; no weights."""
        import mlflow

        with tempfile.TemporaryDirectory() as scratch:
            prompt = Path(scratch) / "prompt.png"
            Image.fromarray(self.detector.prompt_images(category)[0]).save(prompt)
            folder = Path(scratch) / "pointer"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # advice about input examples
                mlflow.pyfunc.save_model(
                    str(folder),
                    python_model=str(POINTER_CODE),
                    model_config={
                        "category": category,
                        "weights_uri": self.weights_uri,
                        "digest": self.detector.digest,
                        "prompts": list(self.detector.spec.categories[category].prompt_names),
                    },
                    artifacts={"prompt": str(prompt)},
                    signature=pointer_signature(),
                    pip_requirements=[f"onenip[full]=={__version__}"],
                )
            return store_folder(
                self.client,
                folder,
                name=registered_name(category),
                run_id=self.run_id,
                tags={"onenip.points_at": self.weights_uri},
            )


def _store(
    model_dir: Path,
    detector: Detector,
    *,
    params: Mapping[str, Any],
    facts: Mapping[str, str],
    experiment: str,
) -> _Publication:
    """Store a model and its run, once, however many publish it at the same time."""
    client = store.connect(create=True)
    first = min(detector.categories)  # whoever publishes this model meets at this lock
    _ensure_registered(client, first)
    with hold_lock(first):
        run_id = _ensure_run(
            client, detector.digest, params=params, facts=facts, experiment=experiment
        )
        weights_uri = store_weights(
            client, model_dir, detector, run_id=run_id, experiment=experiment
        )
    return _Publication(client, detector, run_id, weights_uri, facts)


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


def _is_newest(version: Version) -> bool:
    known = [v for v in list_versions(version.category) if v.approval != "provisional"]
    return all(other.number <= version.number for other in known)


def _describe(metrics: Metrics, run_id: str) -> str:
    """What MLflow's page shows of a version: its wrong verdicts, and a link to its report."""
    text = "; ".join(f"{title} {count}" for title, count in describe_wrong(metrics).items())
    address = find_report(run_id)
    return f"{text}. [Report]({address})" if address else text


def _ensure_registered(client: MlflowClient, category: str) -> None:
    from mlflow.exceptions import MlflowException

    name = registered_name(category)
    with store.refusals(name):
        try:
            client.create_registered_model(
                name,
                tags={"onenip.category": category},
                description=f"Which version of the unified detector serves {plain(category)}. "
                f"Approve with `{approval_command(category)}`.",
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
