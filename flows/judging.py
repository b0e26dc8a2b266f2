"""The gate on a new model, one task per category: in this process, or on the workers of a Dask cluster.

ONENIP_DASK_ADDRESS names the cluster's scheduler, such as `tcp://10.0.0.5:8786`. Its workers see the
checkout at the same path, and the addresses of MLflow and Prefect in their environment. Without it
one category is judged after the other, so that none disturbs another's timing.
"""

from __future__ import annotations

import os
from contextlib import chdir
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.failures import name_run
from onenip.data.outputs import OUTPUTS
from onenip.detector.detector import Detector
from onenip.errors import OneNIPError, UnreachableError
from onenip.operation import retraining
from onenip.params import DEFAULT_PATH, Params
from onenip.registry.champions import Champions
from onenip.registry.tags import GateResult
from onenip.registry.versions import Snapshot, read_snapshot

DASK_ADDRESS = "ONENIP_DASK_ADDRESS"

_CONNECT_SECONDS = 15


def judge_model(model_dir: Path, manifest: Path) -> dict[str, GateResult]:
    """Gate results of a model by category, without the categories that it serves already.

    Args:
        model_dir: the new model, in this checkout.
        manifest: the current one, in this checkout.

    Raises:
        OneNIPError: if no Dask worker can be had, or a category cannot be judged.
    """
    categories = Detector.load(model_dir).categories
    chosen = judge.with_options(task_runner=choose_task_runner())
    found: dict[str, GateResult] = chosen(list(categories), str(model_dir), str(manifest))
    return found


def judge_and_show() -> dict[str, GateResult]:
    """Ask the gate about every category of the new model, and attach its results to the run."""
    results = judge_model(OUTPUTS.model, OUTPUTS.manifest)
    create_table_artifact(
        key="gate",
        table=retraining.to_table(results, Champions(), OUTPUTS.model),
        description="Champion and challenger on the same images; changes are challenger minus champion.",
    )
    return results


def choose_task_runner() -> TaskRunner[Any]:
    """The cluster that ONENIP_DASK_ADDRESS names; else this process, one category at a time.

    Raises:
        UnreachableError: if the cluster has no scheduler or no worker.
        OneNIPError: if Dask is not installed.
    """
    address = os.environ.get(DASK_ADDRESS)
    if not address:
        return ThreadPoolTaskRunner(max_workers=1)
    try:
        from distributed import Client
        from prefect_dask.task_runners import DaskTaskRunner
    except ModuleNotFoundError as error:
        raise OneNIPError(f"{DASK_ADDRESS}: `pip install 'onenip[dask]'` first") from error
    try:
        with Client(address, timeout=_CONNECT_SECONDS, set_as_default=False) as client:
            workers = client.scheduler_info()["workers"]
    except (OSError, ValueError) as error:
        raise UnreachableError(
            f"{DASK_ADDRESS}: no scheduler answers at {address}; `dask scheduler` starts one"
        ) from error
    if not workers:
        raise UnreachableError(
            f"{DASK_ADDRESS}: {address} has no worker; `dask worker {address}` starts one"
        )
    runner: TaskRunner[Any] = DaskTaskRunner(address=address)
    return runner


@flow(
    name="judge", flow_run_name=name_run("judge"), persist_result=False, validate_parameters=False
)
def judge(categories: list[str], model_dir: str, manifest: str) -> dict[str, GateResult]:
    """Ask the gate about each category.

    Args:
        categories: of the model.
        model_dir: the new model.
        manifest: the current one.
    """
    root = str(Path().resolve())
    snapshot = read_snapshot()
    futures: dict[str, PrefectFuture[GateResult | None]] = {
        category: judge_category.submit(
            category, root, model_dir, manifest, snapshot.only(category)
        )
        for category in categories
    }
    results = {category: future.result() for category, future in futures.items()}
    return {category: result for category, result in results.items() if result is not None}


@task(name="judge category", task_run_name="judge {category}", persist_result=False)
def judge_category(
    category: str, root: str, model_dir: str, manifest: str, snapshot: Snapshot
) -> GateResult | None:
    """Champion and challenger of one category on the same images; None if it serves already.

    Args:
        category: the product category.
        root: the checkout.
        model_dir: the new model, in the checkout.
        manifest: the current one, in the checkout.
        snapshot: of the registry, the same for all categories.
    """
    with chdir(root):
        results = retraining.judge_categories(
            Params.load(DEFAULT_PATH),
            model_dir=Path(model_dir),
            manifest=Path(manifest),
            champions=Champions(snapshot),
            categories=(category,),
        )
    return results.get(category)
