"""Deployments of what runs by itself: watch, retrain, approve, drift.

    python -m flows.deploy          # declare them on the server that PREFECT_API_URL names

Training has a pool of its own, so that it can run on other machines than the light flows.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import typer
from prefect import deploy, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.exceptions import ObjectAlreadyExists
from prefect.runner.storage import LocalStorage
from prefect.workers.process import ProcessWorker

from flows.automations import declare_automations
from flows.command import require_server, run_command
from flows.settings import LIGHT_POOL, TRAINING_POOL
from onenip.operation.notices import ARRIVED_EVENT, DRIFT_EVENT
from onenip.params import Params

_DRIFT_PERIOD = timedelta(minutes=30)


def list_deployments(params: Params, *, root: Path) -> dict[str, list[RunnerDeployment]]:
    """Deployments by work pool.

    Args:
        params: schedules, in UTC.
        root: the workspace that the workers work in.
    """
    announced = DeploymentEventTrigger(
        name="images were announced", expect={ARRIVED_EVENT}, match={}, parameters={}
    )
    drifted = DeploymentEventTrigger(
        name="a champion drifts",
        enabled=params.drift.retrain,
        expect={DRIFT_EVENT},
        match={},
        within=_DRIFT_PERIOD,  # categories drift together: one retraining answers for all
        parameters={"force": True},
    )
    return {
        LIGHT_POOL: [
            _declare("watch", root, cron=params.retrain.cron, triggers=[announced]),
            _declare("drift", root, cron=params.drift.cron),
            _declare("approve", root, module="approval"),
        ],
        TRAINING_POOL: [_declare("retrain", root, triggers=[drifted])],
    }


def declare(params: Params, *, root: Path) -> list[str]:
    """Create or update the pools and deployments on the server; their names.

    Watch and retrain run one at a time each; a start that comes too soon waits its turn.
    """
    names = []
    for pool, deployments in list_deployments(params, root=root).items():
        _declare_pool(pool)
        deploy(
            *deployments,
            work_pool_name=pool,
            build=False,
            push=False,
            print_next_steps_message=False,
            ignore_warnings=True,
        )
        names += [f"{one.flow_name}/{one.name}" for one in deployments]
    return names


def _declare_pool(name: str) -> None:
    """Create or update a pool whose runs choose neither command, environment nor folder themselves."""
    template = ProcessWorker.get_default_base_job_template()
    variables = template["variables"]
    for key in ("command", "env", "working_dir"):
        template["job_configuration"].pop(key, None)
        variables["properties"].pop(key, None)
    variables["additionalProperties"] = False
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(
                WorkPoolCreate(name=name, type="process", base_job_template=template)
            )
        except ObjectAlreadyExists:
            client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))


def _declare(
    name: str,
    root: Path,
    *,
    module: str | None = None,
    cron: str | None = None,
    triggers: list[DeploymentEventTrigger] | None = None,
) -> RunnerDeployment:
    started_by: list[Any] = list(triggers or [])
    found: Any = RunnerDeployment.from_storage(
        storage=LocalStorage(str(root)),
        entrypoint=f"flows.{module or name}.{name}",  # wherever it is installed
        name=name,
        cron=cron,
        triggers=started_by,
        concurrency_limit=None if name == "approve" else 1,
    )
    return cast("RunnerDeployment", found)


def main() -> None:
    """Declare the deployments of this checkout, and what the server does when a run dies."""
    params = Params.load()
    require_server()
    for name in [*declare(params, root=Path().resolve()), *declare_automations(params.notify)]:
        typer.echo(name)


if __name__ == "__main__":
    run_command(main)
