"""Automations on Prefect's server for runs whose process or host died.

Such a run is marked as crashed: at once by its worker, or by the server after ten minutes of silence.
The server then notifies the team's webhook, since no process is left to do it.
"""

from __future__ import annotations

from datetime import timedelta

from prefect import get_client
from prefect.automations import (
    AutomationCore,
    CallWebhook,
    ChangeFlowRunState,
    EventTrigger,
    Posture,
    ResourceSpecification,
)
from prefect.blocks.webhook import Webhook
from prefect.client.schemas.objects import StateType

from onenip.operation.notices import read_address
from onenip.params import NotifyParams

SILENT = "onenip: a silent run has crashed"
CRASHED = "onenip: tell of crashed runs"
BLOCK = "onenip-team"

_SILENCE = timedelta(minutes=10)  # longer than a server's restart: runs go on without one
_HEARTBEAT = "prefect.flow-run.heartbeat"
_ENDS = ("Completed", "Failed", "Cancelled", "Crashed", "Suspended")
_PAYLOAD = """{
  "text": {{ (flow.name ~ " crashed: " ~ (flow_run.state.message or "no reason is known")) | tojson }},
  "kind": "run-failed",
  "at": {{ event.occurred | string | tojson }},
  "flow": {{ flow.name | tojson }},
  "run": {{ flow_run.name | tojson }}
}"""


def declare_automations(params: NotifyParams) -> list[str]:
    """Create or update the automations on the server that PREFECT_API_URL names; their names.

    Args:
        params: the team's webhook; without one only the run's state is corrected.
    """
    runs = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
    silent = AutomationCore(
        name=SILENT,
        description="Its process or its host died without a word.",
        trigger=EventTrigger(
            match=runs,
            for_each={"prefect.resource.id"},
            after={_HEARTBEAT},
            expect={_HEARTBEAT, *(f"prefect.flow-run.{end}" for end in _ENDS)},
            posture=Posture.Proactive,
            threshold=1,
            within=_SILENCE,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"nothing was heard of it for {_SILENCE.seconds // 60} minutes",
            )
        ],
    )
    _put(silent)
    address = read_address(params)
    if address is None:
        _remove(CRASHED)
        return [SILENT]
    block = Webhook(url=address).save(BLOCK, overwrite=True)
    crashed = AutomationCore(
        name=CRASHED,
        description="POSTs to notify.webhook of params.yaml.",
        trigger=EventTrigger(
            match=runs,
            match_related=ResourceSpecification({"prefect.resource.role": "deployment"}),
            for_each={"prefect.resource.id"},
            expect={"prefect.flow-run.Crashed"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[CallWebhook(block_document_id=block, payload=_PAYLOAD)],
    )
    _put(crashed)
    return [SILENT, CRASHED]


def _put(automation: AutomationCore) -> None:
    with get_client(sync_client=True) as client:
        known = client.read_automations_by_name(automation.name)
        if known:
            client.update_automation(known[0].id, automation)
        else:
            client.create_automation(automation)


def _remove(name: str) -> None:
    with get_client(sync_client=True) as client:
        for automation in client.read_automations_by_name(name):
            client.delete_automation(automation.id)
