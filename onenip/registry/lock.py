"""One decision at a time per category, whoever decides and from whichever machine.

MLflow has no compare-and-set. A turn is a tag that names its holder on the registered model:
whoever sees another's tag after writing its own steps back and tries again. Each writes before it
reads, so two can never both see themselves alone. A holder that was killed, or whose server died
before it could let go, is forgotten: at once on its own machine, elsewhere after minutes.
"""

from __future__ import annotations

import os
import platform
import random
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil

from onenip.errors import RegistryError
from onenip.registry import store
from onenip.registry.versions import registered_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TAG = "onenip.turn."
_STALE_SECONDS = 120.0  # age from which a holder on another machine may be forgotten,
_WATCH_SECONDS = 60.0  # once it was seen for so long: clocks differ, and jump
_PAUSE_SECONDS = 0.2

_held: set[str] = set()  # tokens of this process


@contextmanager
def hold_lock(category: str, *, timeout_seconds: float = 90.0) -> Iterator[None]:
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
    _held.add(token)
    try:
        with store.refusals(f"decision about {category}"):
            _wait(client, name, token, timeout_seconds)
        try:
            yield
        finally:
            with store.refusals(f"decision about {category}"):
                client.delete_registered_model_tag(name, _TAG + token)
    finally:
        _held.discard(token)  # even if the server could not be told


def _wait(client: MlflowClient, name: str, token: str, timeout_seconds: float) -> None:
    started_at = time.monotonic()
    seen: dict[str, float] = {}
    while True:
        client.set_registered_model_tag(name, _TAG + token, _sign())
        if not _others(client, name, token, seen):
            return
        client.delete_registered_model_tag(name, _TAG + token)
        if time.monotonic() - started_at > timeout_seconds:
            raise RegistryError(f"{name}: somebody else is deciding about it; try again")
        # spread out, so that two who met do not meet again
        time.sleep(random.SystemRandom().uniform(0.5, 1.5) * _PAUSE_SECONDS)


def _others(client: MlflowClient, name: str, token: str, seen: dict[str, float]) -> list[str]:
    """Tokens of other holders; the tags of those that cannot be at work any more are removed.

    Args:
        client: of the registry.
        name: of the registered model.
        token: our own.
        seen: when each other holder was seen first, by our own steady clock; added to.
    """
    others = []
    for key, value in client.get_registered_model(name).tags.items():
        other = key.removeprefix(_TAG)
        if not key.startswith(_TAG) or other == token:
            continue
        watched_seconds = time.monotonic() - seen.setdefault(other, time.monotonic())
        if _is_stale(other, value, watched_seconds):
            client.delete_registered_model_tag(name, key)
        else:
            others.append(other)
    return others


def _sign() -> str:
    """Who holds a turn: since when, on which machine, in which process, started when."""
    process = psutil.Process()
    return f"{time.time()!r} {process.pid} {process.create_time():.0f} {platform.node()}"


def _is_stale(token: str, value: str, watched_seconds: float) -> bool:
    """Whether a holder cannot be at work any more."""
    moment, _, rest = value.partition(" ")
    number, _, rest = rest.partition(" ")
    started_at, _, host = rest.partition(" ")
    if host != platform.node():
        is_old = abs(time.time() - float(moment)) > _STALE_SECONDS
        return is_old and watched_seconds > _WATCH_SECONDS
    if int(number) == os.getpid():
        return token not in _held
    try:
        return abs(psutil.Process(int(number)).create_time() - float(started_at)) > 2.0
    except psutil.NoSuchProcess:
        return True
