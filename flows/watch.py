"""The inbox, watched: retraining starts when enough images have arrived, or have waited long enough.

    python -m flows.watch

Looks only; reads no image and writes nothing. Runs on a schedule (`retrain.cron`), and at once when
somebody announces images with `onenip notify`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

import typer
from prefect import flow, get_client, get_run_logger
from prefect.client.schemas import FlowRun, State
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Failed

from flows.approval import ask_people, close_forms, list_waiting
from flows.command import require_server, run_command
from flows.failures import name_run, notify_failure
from flows.retrain import retrain
from onenip.data.manifest import DATA_DIR
from onenip.errors import OneNIPError
from onenip.ingestion.ingest import open_journal
from onenip.ingestion.waiting import choose_due, count_waiting, list_new_categories
from onenip.params import Params
from onenip.registry import approval
from onenip.sources.inbox import open_inbox

DEPLOYMENT = "retrain/retrain"


@flow(
    name="watch",
    flow_run_name=name_run("watch"),
    persist_result=False,
    on_failure=[notify_failure],
    on_crashed=[notify_failure],
)
def watch() -> State[Any]:
    """Count what waits, and start retraining if it is due.

    Also records a champion that somebody set by hand in MLflow, and makes sure that every version that
    waits has its form, and no other has.
    """
    params = Params.load()
    try:
        for entry in approval.reconcile():
            get_run_logger().warning("%s: %s", entry.category, entry.reason)
        close_forms()
        ask_people(list_waiting())  # again, in case the run that registered them was killed
        if params.retrain.inbox is None:
            return Completed(message="there is no inbox: retrain.inbox names none")
        inbox = open_inbox(params.retrain.inbox, settle_seconds=params.retrain.settle_seconds)
        with open_journal() as journal:
            waiting = count_waiting(inbox, journal)
    except OneNIPError as error:
        return Failed(message=str(error))
    counts = ", ".join(f"{one.count} {one.category or 'unsorted'}" for one in waiting) or "nothing"
    due = choose_due(waiting, params.retrain, now=datetime.now(tz=UTC))
    if params.retrain.new_categories:
        new = list_new_categories(waiting, DATA_DIR)
        due += [f"the first of {name}" for name in new if name not in due]
    get_run_logger().info("waiting: %s; due: %s", counts, ", ".join(due) or "nothing")
    if not due:
        return Completed(message=f"waiting: {counts}; not due yet")
    return start_retraining(force=False)


def start_retraining(*, force: bool) -> State[Any]:
    """Start retraining on the worker that has the deployment, or here if there is no server.

    A start while one runs waits its turn: the deployment allows one at a time, and one may wait.
    """
    if not is_deployed():
        return retrain(force=force, return_state=True)
    with get_client(sync_client=True) as client:
        waiting = client.read_flow_runs(
            deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=["retrain"])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
            ),
        )
    same = [run for run in waiting if run.parameters.get("force", False) >= force]
    if same:
        return Completed(message=f"retraining waits for its turn already: {same[0].name}")
    parameters = {"force": force}
    run = cast(
        "FlowRun", run_deployment(DEPLOYMENT, parameters=parameters, timeout=0, as_subflow=False)
    )
    return Completed(message=f"retraining started: {run.name}")


def is_deployed() -> bool:
    """Whether the server has the deployment of retraining."""
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            return False
    return True


def main() -> None:
    """Look into the inbox once, and retrain if it is due."""
    require_server()
    state = watch(return_state=True)
    if not state.is_completed():
        raise OneNIPError(state.message or "watch failed")
    typer.echo(state.message)


if __name__ == "__main__":
    run_command(main)
