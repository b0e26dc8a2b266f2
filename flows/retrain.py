"""Retraining as a flow: ingest, train, judge, register, and let the policy or a person decide.

    python -m flows.retrain            # if enough has arrived
    python -m flows.retrain --force    # whatever has arrived

Every step may be repeated: a run that was killed is simply started again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.client.schemas import State
from prefect.states import Completed, Failed

from flows.approval import ask_people, notify_waiting
from flows.command import require_server, run_command
from flows.failures import name_run, network_task, notify_failure
from flows.judging import judge_and_show
from flows.pipeline import (
    STAGES,
    compare_with_champions,
    link_report,
    reproduce,
    show,
)
from onenip.data import git
from onenip.data.checkout import hold_checkout
from onenip.data.outputs import OUTPUTS
from onenip.errors import OneNIPError
from onenip.ingestion.ingest import IngestResult, ingest, open_journal
from onenip.ingestion.waiting import choose_due, count_waiting
from onenip.model.file import hash_model
from onenip.model.network import check_architecture
from onenip.operation import (
    provisional,
    retraining,
)
from onenip.params import DEFAULT_PATH, Params
from onenip.registry.champions import Champions
from onenip.registry.tags import GateResult, Version
from onenip.sources.inbox import open_inbox
from onenip.stages.process import lower_priority


@network_task("ingest")
def take_in() -> IngestResult:
    """Take in everything that waits in the inbox."""
    params = Params.load()
    address = params.retrain.require_inbox()
    inbox = open_inbox(address, settle_seconds=params.retrain.settle_seconds)
    champions = Champions()
    result = ingest(
        params, inbox=inbox, find_champion=champions.find, find_unified=champions.find_unified
    )
    create_table_artifact(
        key="arrivals",
        table=[{"category": name, **counts} for name, counts in result.counts.items()],
        description="What became of the images that arrived.",
    )
    if result.set_aside:
        create_table_artifact(
            key="set-aside",
            table=[
                {"image": item.key, "where": item.outcome, "reason": item.reason}
                for item in result.set_aside
            ],
            description="Images that were not taken, and why; they are in the folders beside the inbox.",
        )
    return result


@network_task("provide for new categories")
def provide_for_new() -> None:
    """Register the champion's model for categories that it was not trained on, as provisional versions."""
    found = provisional.provide(Params.load(), root=Path())
    if found:
        create_table_artifact(
            key="provisional",
            table=[{"category": one.category, "version": one.number} for one in found],
            description="Categories that the champion's model answers for without training on them.",
        )


@task(name="warm start", persist_result=False)
def warm_start() -> str | None:
    """Lay out the model that training starts from, and name it in retrain.yaml."""
    return retraining.write_warm_start(Params.load(), root=Path())


@network_task("register")
def register_judged(results: dict[str, GateResult]) -> list[tuple[Version, GateResult]]:
    """Register the new model with what the gate says; versions that wait for a person come back."""
    from onenip.stages import register as stage

    params = Params.load()
    waiting = []
    for version in stage.run(params, model_dir=OUTPUTS.model, evaluation_dir=OUTPUTS.evaluation):
        result = results.get(version.category)
        if result is None or not retraining.record_gate(version, result):
            continue
        if retraining.decide_by_policy(version, result, params):
            get_run_logger().info("%s: version %d is champion", version.category, version.number)
            continue
        waiting.append((version, result))
    return waiting


@task(name="commit", persist_result=False)
def commit_training(last: int) -> None:
    """Commit what the new model was made with on the branch of arrivals; note which images it saw.

    Args:
        last: number of the latest arrival when training began.
    """
    params = Params.load()
    made_with = (Path("data.dvc"), Path("dvc.lock"), DEFAULT_PATH, OUTPUTS.retraining)
    paths = [path for path in made_with if path.is_file()]
    name, remote = params.retrain.branch, params.retrain.remote
    git.commit(paths, message="Retrain on arrived images", branch=name)
    if remote is not None:
        git.push(name, remote=remote)
    with open_journal() as journal:
        journal.mark_trained(digest=hash_model(OUTPUTS.model), last=last)


@flow(
    name="retrain",
    flow_run_name=name_run("retrain"),
    persist_result=False,
    on_failure=[notify_failure],
    on_crashed=[notify_failure],
)
def retrain(*, force: bool = False) -> State[Any]:
    """Ingest what arrived; if enough is new, train, judge, register and decide.

    Waits while another command, such as a pipeline, is at work in the checkout.

    Args:
        force: train although too little is new.
    """
    params = Params.load()
    try:
        with hold_checkout("retrain", wait=True):
            waiting = _retrain(params, force=force)
    except OneNIPError as error:
        get_run_logger().error("%s", error)
        return Failed(message=str(error))
    if waiting is None:
        return Completed(message="too little is new to train")
    for version, result in waiting:
        notify_waiting(version, result, params.notify)
    ask_people([version for version, _ in waiting])
    names = ", ".join(version.category for version, _ in waiting) or "nobody"
    return Completed(message=f"waiting for a person: {names}")


def _retrain(params: Params, *, force: bool) -> list[tuple[Version, GateResult]] | None:
    """Versions that wait for a person; None if too little is new."""
    if params.retrain.inbox is not None:
        take_in()
    provide_for_new()
    with open_journal() as journal:
        due = choose_due(count_waiting(None, journal), params.retrain, now=datetime.now(tz=UTC))
        last = journal.last_id()
    if not (due or force):
        return None
    check_architecture(params.model)
    warm_start()
    for stage in STAGES:
        _complete(reproduce(stage, return_state=True))
    show()
    results = judge_and_show()
    _complete(compare_with_champions(return_state=True))
    waiting = register_judged(results)
    _complete(link_report(return_state=True))
    commit_training(last)
    return waiting


def _complete(state: State[Any]) -> None:
    """Make sure that a step succeeded; what it says of its failure becomes the flow's."""
    if not state.is_completed():
        raise OneNIPError(state.message or str(state.name))


def main(
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Train although too little is new.")
    ] = False,
) -> None:
    """Ingest what arrived; if enough is new, train, judge and register, then let policy or people decide."""
    lower_priority()
    require_server()
    state = retrain(force=force, return_state=True)
    if not state.is_completed():
        raise OneNIPError(state.message or "retrain failed")
    typer.echo(state.message)


if __name__ == "__main__":
    run_command(main)
