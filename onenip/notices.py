"""Telling others: an event for Prefect's server, and a JSON POST to the team's webhook.

Knows addresses and HTTP; what is worth telling is decided by the callers.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import httpx

from onenip.errors import OneNIPError
from onenip.params import NotifyParams

log = logging.getLogger(__name__)

Kind = Literal["challenger-waits", "gate-failed", "run-failed", "champion-drifts"]

ARRIVED_EVENT = "onenip.images.arrived"
DRIFT_EVENT = "onenip.champion.drifts"


class NoticeError(OneNIPError):
    """A server could not be told; the message says which and why."""


def emit(
    event: str, category: str, *, payload: Mapping[str, Any], timeout_seconds: float = 10.0
) -> None:
    """Announce something to the Prefect server that PREFECT_API_URL names.

    Args:
        event: its name, such as `onenip.images.arrived`.
        category: the product category that it is about.
        payload: plain values.
        timeout_seconds: of the request.

    Raises:
        NoticeError: if no server is named, or it does not take the event.
    """
    address = os.environ.get("PREFECT_API_URL")
    if not address:
        raise NoticeError("set PREFECT_API_URL to the server that is to be told")
    body = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(tz=UTC).isoformat(),
        "event": event,
        "resource": {"prefect.resource.id": f"onenip.category.{category}"},
        "payload": {"category": category, **payload},
    }
    key = os.environ.get("PREFECT_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    login = os.environ.get("PREFECT_API_AUTH_STRING", "")
    user, _, password = login.partition(":")
    try:
        httpx.post(
            f"{address.rstrip('/')}/events",
            json=[body],
            headers=headers,
            auth=(user, password) if login else None,
            timeout=timeout_seconds,
        ).raise_for_status()
    except httpx.HTTPError as error:
        raise NoticeError(f"{address}: the event was not taken: {error}") from error


def tell(kind: Kind, message: str, *, facts: Mapping[str, Any], params: NotifyParams) -> bool:
    """POST a notice to the team's webhook; whether it was taken.

    The body has `text`, which chat services show, and `kind`, `at` and the facts for programs. That
    nobody could be told is logged and stops nothing.

    Args:
        kind: what happened.
        message: one sentence for a person.
        facts: plain values for a program.
        params: where to.
    """
    if params.webhook is None:
        return False
    address = os.path.expandvars(params.webhook)
    body = {"text": message, "kind": kind, "at": datetime.now(tz=UTC).isoformat(), **facts}
    transport = httpx.HTTPTransport(retries=2)
    try:
        with httpx.Client(transport=transport, timeout=params.timeout_seconds) as client:
            client.post(address, json=body).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        log.warning("nobody was told that %s: %s", message, type(error).__name__)
        return False
    return True
