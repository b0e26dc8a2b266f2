"""The unified model as MLflow keeps it: stored once, fetched again, and checked against its digest."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from onenip.errors import CheckpointError, RegistryError
from onenip.model.file import hash_model
from onenip.registry import store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

    from onenip.detector.detector import Detector

NAME = "onenip"

_DIGEST = "onenip.digest"


def store_weights(
    client: MlflowClient, model_dir: Path, detector: Detector, *, run_id: str, experiment: str
) -> str:
    """Address of the stored model with this digest, stored now if it is not there yet.

    The caller holds a lock: two at once would both store it.

    Args:
        client: of the store.
        model_dir: folder of the model.
        detector: the same, loaded.
        run_id: the run that made it.
        experiment: MLflow experiment to look in.

    Raises:
        RegistryError: if the store cannot be reached.
    """
    experiment_id = store.ensure_experiment(client, experiment)
    with store.refusals("model"):
        found = client.search_logged_models(
            [experiment_id], filter_string=f"tags.`{_DIGEST}` = '{detector.digest}'"
        )
        ready = [model for model in found if str(model.status) == "READY"]
    if ready:
        return str(ready[0].model_uri)
    tags = {_DIGEST: detector.digest, "onenip.categories": ", ".join(detector.categories)}
    model = store_folder(client, model_dir, name=NAME, run_id=run_id, tags=tags)
    return str(model.model_uri)


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


def store_folder(
    client: MlflowClient, folder: Path, *, name: str, run_id: str, tags: dict[str, str]
) -> LoggedModel:
    """Upload a folder as a model of a run; it counts as ready only when it is whole.

    Raises:
        RegistryError: if the store cannot be reached.
    """
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
