"""Drift as a flow: arriving images compared with those that the champions were approved on.

python -m flows.drift
"""

from __future__ import annotations

from typing import Any

import typer
from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.schemas import State
from prefect.events import emit_event
from prefect.states import Completed, Failed

from flows.command import require_server, run_command
from flows.failures import name_run, notify_failure
from flows.retrain import retrain
from flows.settings import STATE_DIR
from flows.watch import is_deployed
from onenip.data.outputs import OUTPUTS
from onenip.errors import OneNIPError
from onenip.ingestion.ingest import open_journal
from onenip.operation.drift import DriftMemory, look_for_drift
from onenip.operation.notices import DRIFT_EVENT, has_address, notify
from onenip.params import Params
from onenip.registry.champions import Champions
from onenip.review.answers import Answers
from onenip.review.collecting import collect_drift, collect_waiting
from onenip.review.queue import ReviewQueue
from onenip.sources.inbox import open_inbox


@flow(
    name="drift",
    flow_run_name=name_run("drift"),
    persist_result=False,
    on_failure=[notify_failure],
    on_crashed=[notify_failure],
)
def drift() -> State[Any]:
    """Measure drift of every category; past a limit raise an event and notify the team, once per champion.

    Also fills the review queue, which shows what drifts. With `drift.retrain` the event starts retraining:
    by an automation on the server that has the deployment, and here where there is none.
    """
    params = Params.load()
    queue, answers = ReviewQueue(), Answers(params.review.answers or OUTPUTS.recent)
    inbox = None
    try:
        if params.retrain.inbox is not None:
            inbox = open_inbox(params.retrain.inbox, settle_seconds=params.retrain.settle_seconds)
        collect_waiting(queue, answers, inbox)
        with open_journal() as journal:
            found = look_for_drift(
                params,
                journal=journal,
                champions=Champions(),
                manifest=OUTPUTS.manifest,
                inbox=inbox,
                answers=answers,
            )
            for result in found:
                if result.is_drifting:
                    latest = journal.latest(result.category, limit=params.drift.window)
                    detail = "; ".join(result.reasons)
                    collect_drift(queue, result.category, detail, latest)
    except OneNIPError as error:
        return Failed(message=str(error))
    if found:
        create_table_artifact(
            key="drift",
            table=[{**r.dump(), "reasons": "; ".join(r.reasons)} for r in found],
            description="Arrived and served images against those at approval, per category.",
        )
    memory = DriftMemory(STATE_DIR / "drift.json")
    drifting = [result for result in found if result.is_drifting]
    new = memory.choose_new(found)
    for result in new:
        text = f"{result.title} drifts: {'; '.join(result.reasons)}"
        get_run_logger().warning("%s", text)
        resource = {"prefect.resource.id": f"onenip.category.{result.category}"}
        emit_event(DRIFT_EVENT, resource=resource, payload=result.dump())
        seen = queue.list_items(category=result.category, reason="drift", limit=1)
        is_taken = notify(
            "champion-drifts",
            text,
            facts=result.dump(),
            params=params.notify,
            picture=seen[0].image if seen else None,
        )
        if is_taken or not has_address(params.notify):
            memory.remember(result)
    if new and params.drift.retrain and not is_deployed():
        return retrain(force=True, return_state=True)
    names = ", ".join(result.title for result in drifting) or "nothing"
    return Completed(message=f"{len(found)} categories looked at; drifting: {names}")


def main() -> None:
    """Measure drift once."""
    require_server()
    state = drift(return_state=True)
    if not state.is_completed():
        raise OneNIPError(state.message or "drift failed")
    typer.echo(state.message)


if __name__ == "__main__":
    run_command(main)
