"""Telling the team that a run failed, for whatever reason."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas import FlowRun, State
from prefect.flows import Flow

from onenip.errors import ParamsError
from onenip.notices import tell
from onenip.params import NotifyParams, Params


def tell_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook for `on_failure` and `on_crashed` of a flow."""
    try:
        params = Params.load().notify
    except ParamsError:  # the failure itself, perhaps; then nobody can be told
        params = NotifyParams()
    text = f"{flow.name} failed: {state.message or state.name}"
    tell("run-failed", text, facts={"flow": flow.name, "run": flow_run.name}, params=params)
