"""Notices: an event for Prefect's server, a JSON POST to the team's webhook, messages by apprise.

Knows addresses, HTTP and signatures; when to notify is decided by the callers. With
ONENIP_WEBHOOK_SECRET in the environment every POST is signed as standardwebhooks.com says.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from onenip.data.outputs import OUTPUTS
from onenip.errors import OneNIPError
from onenip.folders import write_whole
from onenip.params import NotifyParams

log = logging.getLogger(__name__)

Kind = Literal["challenger-waits", "gate-failed", "run-failed", "champion-drifts", "summary"]

ARRIVED_EVENT = "onenip.images.arrived"
DRIFT_EVENT = "onenip.champion.drifts"
SECRET = "ONENIP_WEBHOOK_SECRET"

_SECRET_PREFIX = "whsec_"


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
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise NoticeError(f"{address}: the event was not taken: {error}") from error


def notify(
    kind: Kind,
    message: str,
    *,
    facts: Mapping[str, Any],
    params: NotifyParams,
    picture: Path | None = None,
    memory: Path = OUTPUTS.notices,
) -> bool:
    """Send a notice to the team's webhook and addresses; whether anybody has it.

    The webhook's body has `text`, which chat services show, and `kind`, `at` and the facts for programs. An
    address that is down is tried three times; that nobody could be told is logged and stops nothing. The same
    notice is not sent again within `notify.repeat_hours`.

    Args:
        kind: what happened.
        message: one sentence for a person.
        facts: plain values for a program.
        params: where to.
        picture: an image to look at, for addresses that take one.
        memory: file of what was sent of late.
    """
    webhook = read_address(params)
    addresses = [os.path.expandvars(one) for one in params.addresses]
    if webhook is None and not addresses:
        return False
    said = hashlib.sha256(
        "\0".join([kind, message, webhook or "", *addresses]).encode()
    ).hexdigest()
    sent = _read_sent(memory, hours=params.repeat_hours)
    if said in sent:
        log.info("not said again within %g hours: %s", params.repeat_hours, message)
        return True
    is_posted = webhook is not None and _send(webhook, kind, message, facts, params)
    is_told = bool(addresses) and _tell(addresses, kind, message, picture)
    if is_posted or is_told:
        try:
            with write_whole(memory) as draft:
                draft.write_text(json.dumps({**sent, said: time.time()}), encoding="utf-8")
        except OSError as error:  # a full disk: the notice may come twice
            log.warning("%s: what was sent is not remembered: %s", memory, error)
    return is_posted or is_told


def has_address(params: NotifyParams) -> bool:
    """Whether there is anybody to notify."""
    return params.webhook is not None or bool(params.addresses)


def _read_sent(memory: Path, *, hours: float) -> dict[str, float]:
    """What was sent within the last hours, and when, in seconds since 1970."""
    try:
        sent = dict(json.loads(memory.read_text(encoding="utf-8")))
        return {said: at for said, at in sent.items() if 0 <= time.time() - at < hours * 3600}
    except (OSError, ValueError, TypeError):  # lost or damaged: a notice comes twice
        return {}


def _send(
    address: str, kind: Kind, message: str, facts: Mapping[str, Any], params: NotifyParams
) -> bool:
    """POST a notice to the webhook; whether it was taken."""
    notice = {"text": message, "kind": kind, "at": datetime.now(tz=UTC).isoformat(), **facts}
    body = json.dumps(notice)
    attempts = Retrying(
        retry=retry_if_exception(_is_passing),
        stop=stop_after_attempt(3),
        wait=wait_exponential(multiplier=0.5),
        reraise=True,
    )
    try:
        headers = {"Content-Type": "application/json"} | _sign(body)
        attempts(_post, address, body, headers, params.timeout_seconds)
    except NoticeError as error:
        log.error("nobody was told that %s: %s", message, error)
        return False
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        log.warning("nobody was told that %s: %s", message, type(error).__name__)
        return False
    return True


def _tell(addresses: Sequence[str], kind: Kind, message: str, picture: Path | None) -> bool:
    """Send a notice through apprise; whether any address took it. None is logged: it may hold a secret."""
    import apprise

    logging.getLogger("apprise").setLevel(logging.CRITICAL)
    taken = []
    for number, address in enumerate(addresses, start=1):
        box = apprise.Apprise()
        attach = str(picture) if picture is not None and picture.is_file() else None
        title = f"onenip: {kind.replace('-', ' ')}"
        form = apprise.NotifyFormat.TEXT  # a name's < is none of HTML, and lines stay lines
        if box.add(address) and box.notify(
            title=title, body=message, attach=attach, body_format=form
        ):
            taken.append(number)
        else:
            log.warning("notify.addresses, number %d, did not take: %s", number, message)
    return bool(taken)


def read_address(params: NotifyParams) -> str | None:
    """The team's webhook with variables of the environment filled in; None if there is none."""
    return None if params.webhook is None else os.path.expandvars(params.webhook)


def read_secret() -> str | None:
    """Key of signatures, from ONENIP_WEBHOOK_SECRET; None if there is none."""
    return os.environ.get(SECRET) or None


def _post(address: str, body: str, headers: Mapping[str, str], timeout_seconds: float) -> None:
    answer = httpx.post(address, content=body, headers=dict(headers), timeout=timeout_seconds)
    answer.raise_for_status()


def _is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.is_server_error or error.response.status_code == 429
    return isinstance(error, httpx.TransportError)


def _sign(body: str) -> dict[str, str]:
    """Headers by which the receiver knows the sender; none without a secret."""
    secret = read_secret()
    if secret is None:
        return {}
    return sign(body, secret=secret, identifier=f"msg_{uuid.uuid4().hex}", moment=int(time.time()))


def sign(body: str, *, secret: str, identifier: str, moment: int) -> dict[str, str]:
    """The three headers of standardwebhooks.com: an HMAC-SHA256 over identifier, time and body.

    Args:
        body: of the request.
        secret: `whsec_` and the base64 of 24 to 64 bytes, as the standard has it, or that base64 alone;
            of any other text the bytes themselves are the key.
        identifier: of the message.
        moment: seconds since 1970.

    Raises:
        NoticeError: if what follows `whsec_` is no such base64.
    """
    content = f"{identifier}.{moment}.{body}".encode()
    digest = hmac.new(_to_key(secret), content, hashlib.sha256).digest()
    return {
        "webhook-id": identifier,
        "webhook-timestamp": str(moment),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def _to_key(secret: str) -> bytes:
    encoded = secret.removeprefix(_SECRET_PREFIX)
    try:
        key = base64.b64decode(encoded, validate=True)
    except ValueError:
        key = b""
    if 24 <= len(key) <= 64:
        return key
    if secret.startswith(_SECRET_PREFIX):
        raise NoticeError(f"{SECRET}: after {_SECRET_PREFIX} comes the base64 of 24 to 64 bytes")
    return secret.encode()
