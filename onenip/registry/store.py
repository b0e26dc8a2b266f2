"""The address of MLflow: a server named by MLFLOW_TRACKING_URI, else a database in this checkout.

Knows addresses, experiments and how an error of MLflow becomes a `RegistryError`; knows nothing of
what is stored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from onenip.errors import RegistryError, RegistryUnreachableError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.store.entities.paged_list import PagedList

T = TypeVar("T")

_SQLITE = "sqlite:///"
_NO_ANSWER = ("NewConnectionError", "ConnectTimeout", "Connection aborted", "NameResolutionError")

LOCAL_DATABASE = "mlflow.db"
LOCAL_ARTIFACTS = "mlartifacts"

_KIND = {"mlflow.experimentKind": "custom_model_development"}
_CLASSIC = "workflowType=machine_learning"  # without it, a page opens as one of traces and tokens
_TRAININGS = "Trainings of the unified detector: params, losses, figures, reports."

# MLflow by itself waits for several minutes before it says that a server is down.
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or MLflow's own default: a SQLite file in the current folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / LOCAL_DATABASE}"


def is_local(uri: str) -> bool:
    """Whether runs are kept in a file of this machine, with no server between."""
    return not uri.startswith(("http://", "https://"))


def is_absent() -> bool:
    """Whether the registry would be a local database that was not made yet."""
    uri = tracking_uri()
    return uri.startswith(_SQLITE) and not Path(uri.removeprefix(_SQLITE)).exists()


def connect(*, create: bool = False) -> MlflowClient:
    """A client for `tracking_uri()`, which also becomes the address for MLflow's own functions.

    Args:
        create: make a local database that does not exist yet; for what writes, not for what reads.

    Raises:
        RegistryError: if a local database cannot be opened, or there is none.
    """
    for key, value in _DEFAULTS.items():
        os.environ.setdefault(key, value)
    import mlflow

    uri = tracking_uri()
    if is_absent() and not create:
        path = uri.removeprefix(_SQLITE)
        raise RegistryError(
            f"{path}: there is no registry; run `onenip register`, or set MLFLOW_TRACKING_URI"
        )
    with refusals(f"cannot open {uri}"):
        if uri.startswith(_SQLITE):
            _create_database(Path(uri.removeprefix(_SQLITE)))
        mlflow.set_tracking_uri(uri)
        given = os.environ.get("MLFLOW_REGISTRY_URI")
        registry_uri = given or uri
        mlflow.set_registry_uri(registry_uri)
        if not given:  # where MLflow wrote it, it would outlive a change of the tracking address
            os.environ.pop("MLFLOW_REGISTRY_URI", None)
        return mlflow.MlflowClient(tracking_uri=uri, registry_uri=registry_uri)


def _create_database(path: Path) -> None:
    """Make the file of a local store, whole or not at all: MLflow cannot go on with a half-made one."""
    if path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        draft.unlink(missing_ok=True)
        artifacts = (path.resolve().parent / LOCAL_ARTIFACTS).as_uri()
        made = SqlAlchemyStore(f"{_SQLITE}{draft}", artifacts)  # type: ignore[no-untyped-call]
        made.engine.dispose()
        with suppress(FileExistsError):  # another process was faster
            _link(draft, path)
    except OSError as error:
        raise RegistryError(f"{path}: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except PermissionError:  # a drive without hard links
        os.replace(source, target)


def address_page(experiment_id: str, rest: str = "") -> str | None:
    """Address of an experiment's page, or of what is below it, in MLflow's pages; None without a server."""
    if is_local(tracking_uri()):
        return None
    return f"{tracking_uri().rstrip('/')}/#/experiments/{experiment_id}{rest}?{_CLASSIC}"


def ensure_experiment(client: MlflowClient, name: str, *, note: str = _TRAININGS) -> str:
    """Identifier of an experiment, created if it is missing; two processes may ask at once.

    Artifacts of a local store lie in `mlartifacts/` of the current folder, those of a server where
    the server was told to keep them.

    Args:
        client: of the store.
        name: of the experiment.
        note: description of a new one.

    Raises:
        RegistryError: if the store cannot be reached, or somebody deleted the experiment.
    """
    from mlflow.exceptions import MlflowException

    with refusals(f"experiment {name!r}"):
        found = client.get_experiment_by_name(name)
        if found is None:
            is_file = is_local(tracking_uri())
            location = (Path.cwd() / LOCAL_ARTIFACTS).as_uri() if is_file else None
            tags: dict[str, Any] = {**_KIND, "mlflow.note.content": note}
            try:
                return str(client.create_experiment(name, artifact_location=location, tags=tags))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise RegistryError(f"experiment {name!r} was deleted in MLflow; restore it there")
        return str(found.experiment_id)


def read_pages(ask: Callable[[str | None], PagedList[T]]) -> list[T]:
    """Everything that a search finds.

    Args:
        ask: gives one page, from the token that the page before ended with.
    """
    page = ask(None)
    found = list(page)
    while page.token:
        page = ask(page.token)
        found += page
    return found


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turn MLflow's errors into one `RegistryError` that begins with `what`.

    A fault of the server, which may pass, becomes a `RegistryUnreachableError`.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except SQLAlchemyError as error:
        raise RegistryError(f"{what}: {shorten(str(error).splitlines()[0])}") from error
    except MlflowException as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if any(word in reason for word in _NO_ANSWER):
            message = f"{what}: MLflow does not answer at {tracking_uri()}; is its server up?"
            raise RegistryUnreachableError(message) from error
        is_fault = error.error_code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")
        kind = RegistryUnreachableError if is_fault else RegistryError
        raise kind(f"{what}: {shorten(reason)}") from error


def shorten(text: str, *, limit: int = 300) -> str:
    """Text of at most `limit` characters, its end replaced by an ellipsis."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
