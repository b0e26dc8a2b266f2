"""Failed steps: another attempt where a server was down, and a notice to the team."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, ParamSpec, TypeVar

from prefect import task
from prefect.client.schemas import FlowRun, State, TaskRun
from prefect.flows import Flow
from prefect.tasks import Task

from onenip.errors import ParamsError, UnreachableError
from onenip.operation.notices import notify
from onenip.params import NotifyParams, Params

P = ParamSpec("P")
R = TypeVar("R")

UNREACHABLE = "Unreachable"  # name of the state of a step whose server is down


def may_pass(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Retry condition of a task: only a server that is down gets another attempt, no mistake does."""
    return state.name == UNREACHABLE or isinstance(state.data, UnreachableError)


def network_task(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Prefect's `task`, with two more attempts where a server is down."""
    return task(
        name=name,
        retries=2,
        retry_delay_seconds=[5, 30],
        retry_condition_fn=may_pass,
        persist_result=False,
    )


def name_run(what: str) -> Callable[[], str]:
    """Name of a flow's run: what it is, and when; for `flow_run_name`."""
    return lambda: f"{what} {datetime.now():%Y-%m-%d %H:%M}"


def notify_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook for `on_failure` and `on_crashed` of a flow.

    The server notifies of a deployment's run that crashed, see `flows.automations`.
    """
    if state.is_crashed() and flow_run.deployment_id is not None:
        return
    try:
        params = Params.load().notify
    except ParamsError:  # perhaps the failure itself; then there is no address
        params = NotifyParams()
    text = f"{flow.name} failed: {state.message or state.name}"
    notify("run-failed", text, facts={"flow": flow.name, "run": flow_run.name}, params=params)
