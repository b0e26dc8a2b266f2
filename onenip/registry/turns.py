"""One decision at a time per category, whoever decides and from whichever machine.

MLflow has no compare-and-set. A turn is a tag that names its holder on the registered model:
whoever sees another's tag after writing its own steps back and tries again. Each writes before it
reads, so two can never both see themselves alone.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from onenip.errors import RegistryError
from onenip.registry import store
from onenip.registry.versions import registered_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TAG = "onenip.turn."
_STALE_SECONDS = 120.0  # a holder that was killed is forgotten after this
_PAUSE_SECONDS = 0.2


@contextmanager
def take_turn(category: str, *, timeout_seconds: float = 30.0) -> Iterator[None]:
    """Hold the only right to decide about a category.

    Args:
        category: the product category; it must have a registered model.
        timeout_seconds: how long to wait for another holder.

    Raises:
        RegistryError: if another holds it all that time, or the registry cannot be reached.
    """
    client = store.connect()
    name = registered_name(category)
    token = uuid.uuid4().hex
    with store.refusals(f"decision about {category}"):
        _wait(client, name, token, timeout_seconds)
    try:
        yield
    finally:
        with store.refusals(f"decision about {category}"):
            client.delete_registered_model_tag(name, _TAG + token)


def _wait(client: MlflowClient, name: str, token: str, timeout_seconds: float) -> None:
    started_at = time.monotonic()
    while True:
        client.set_registered_model_tag(name, _TAG + token, repr(time.time()))
        if not _others(client, name, token):
            return
        client.delete_registered_model_tag(name, _TAG + token)
        if time.monotonic() - started_at > timeout_seconds:
            raise RegistryError(f"{name}: somebody else is deciding about it; try again")
        # spread out, so that two who met do not meet again
        time.sleep(random.SystemRandom().uniform(0.5, 1.5) * _PAUSE_SECONDS)


def _others(client: MlflowClient, name: str, token: str) -> list[str]:
    """Tags of other holders; those of holders that were killed long ago are removed."""
    now = time.time()
    others = []
    for key, value in client.get_registered_model(name).tags.items():
        if not key.startswith(_TAG) or key == _TAG + token:
            continue
        if abs(now - float(value)) > _STALE_SECONDS:
            client.delete_registered_model_tag(name, key)
        else:
            others.append(key)
    return others
