"""What follows when a step fails: another attempt where that may help, and telling the team."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas import FlowRun, State, TaskRun
from prefect.flows import Flow
from prefect.tasks import Task

from onenip.errors import ParamsError, UnreachableError
from onenip.notices import tell
from onenip.params import NotifyParams, Params

UNREACHABLE = "Unreachable"  # name of the state of a step whose server is down


def may_pass(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Retry condition of a task: only a server that is down gets another attempt, no mistake does."""
    return state.name == UNREACHABLE or isinstance(state.data, UnreachableError)


def tell_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook for `on_failure` and `on_crashed` of a flow.

    Of a deployment's run that crashed the server tells, see `flows.automations`.
    """
    if state.is_crashed() and flow_run.deployment_id is not None:
        return
    try:
        params = Params.load().notify
    except ParamsError:  # the failure itself, perhaps; then nobody can be told
        params = NotifyParams()
    text = f"{flow.name} failed: {state.message or state.name}"
    tell("run-failed", text, facts={"flow": flow.name, "run": flow_run.name}, params=params)
