"""MLflow's registry webhooks: the server itself tells the team's address what changed in the registry.

Kept apart from `onenip.operation.notices`, which reports what the pipeline knows: a webhook of the
registry also fires when somebody works in MLflow's page, and knows nothing of gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from onenip.errors import RegistryError, RegistryUnreachableError
from onenip.registry import store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.webhook import Webhook

NAME = "onenip"

Change = Literal["registered", "updated", "unchanged", "removed", "none"]


def ensure_webhook(address: str | None, *, events: Sequence[str], secret: str | None) -> Change:
    """Make MLflow's server POST registry events to an address; the same again changes nothing.

    Args:
        address: http or https; None removes what was registered before.
        events: MLflow's names, such as `model_version_alias.created`; none removes it too.
        secret: key of the HMAC-SHA256 signature in the header `X-MLflow-Signature`. It is sent each
            time, because the server does not show it; None keeps an earlier one.

    Returns:
        What was done; `none` where there is nothing and nothing is wanted.

    Raises:
        RegistryError: if there is no server, it cannot be reached, or it refuses: MLflow by itself takes
            https and public addresses only.
    """
    if store.is_local(store.tracking_uri()):
        raise RegistryError("registry webhooks need MLflow's server: set MLFLOW_TRACKING_URI")
    client = store.connect()
    with store.refusals(f"webhook {NAME}"):
        known = [webhook for webhook in _list(client) if webhook.name == NAME]
        if address is None or not events:
            for webhook in known:
                client.delete_webhook(webhook.webhook_id)
            return "removed" if known else "none"
        if not known:
            client.create_webhook(
                NAME,
                address,
                list(events),  # type: ignore[arg-type]  # MLflow lists them as literals
                description="Registered by `onenip webhooks`; follows notify in params.yaml.",
                secret=secret,
            )
            return "registered"
        for surplus in known[1:]:  # two computers registered at once
            client.delete_webhook(surplus.webhook_id)
        is_same = _is_same(known[0], address, events)
        if is_same and secret is None:
            return "unchanged"
        client.update_webhook(
            known[0].webhook_id,
            url=address,
            events=list(events),  # type: ignore[arg-type]
            secret=secret,
            status="ACTIVE",
        )
        return "unchanged" if is_same else "updated"


def send_example() -> str:
    """Ask the server to send an example; empty if it arrived, else why not.

    Raises:
        RegistryError: if the server cannot be reached.
    """
    client = store.connect()
    with store.refusals(f"webhook {NAME}"):
        for webhook in _list(client):
            if webhook.name == NAME:
                result = client.test_webhook(webhook.webhook_id)
                answer = result.error_message or f"the address answered {result.response_status}"
                return "" if result.success else store.shorten(answer)
    return "there is none"


def _list(client: MlflowClient) -> list[Webhook]:
    try:
        with store.refusals("registry webhooks"):
            return store.read_pages(lambda token: client.list_webhooks(page_token=token))
    except RegistryUnreachableError as error:
        raise RegistryUnreachableError(
            f"{error}; if the server runs, its MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY is not the one "
            "that the webhooks in its database were stored with"
        ) from error


def _is_same(webhook: Webhook, address: str, events: Sequence[str]) -> bool:
    registered = {str(event) for event in webhook.events}
    return webhook.url == address and registered == set(events) and webhook.status.is_active()
