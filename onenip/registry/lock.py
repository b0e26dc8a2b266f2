"""A lock per category, held across machines.

MLflow has no compare-and-set. The lock is a tag on the registered model that names its holder:
whoever sees another's tag after writing its own steps back and tries again. Each writes before it
reads, so two can never both see themselves alone.

A holder renews its tag every few seconds. One whose process is gone loses the lock at once on the
same machine; any other, once its tag was not renewed for a while. No clocks are compared.
"""

from __future__ import annotations

import logging
import os
import platform
import random
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil

from onenip.errors import RegistryError
from onenip.registry import store
from onenip.registry.tags import registered_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TAG = "onenip.turn."
_BEAT_SECONDS = 8.0  # between two renewals
_STALE_SECONDS = 45.0  # without a renewal, seen by whoever waits
_PAUSE_SECONDS = 0.2

_held: set[str] = set()  # tokens of this process

log = logging.getLogger(__name__)


class Lock:
    """A held lock, renewed by a thread until it is released.

    Args:
        client: of the registry.
        name: of the registered model.
        token: ours.
    """

    def __init__(self, client: MlflowClient, name: str, token: str) -> None:
        self._client = client
        self._name = name
        self._key = _TAG + token
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Make sure that nobody took the lock over.

        Raises:
            RegistryError: if somebody did, or the registry cannot be reached.
        """
        with store.refusals(self._name):
            if self._key not in self._client.get_registered_model(self._name).tags:
                raise RegistryError(
                    f"{self._name}: this decision took so long that another took over; try again"
                )

    def release(self) -> None:
        """Remove our tag; where the registry cannot be reached, it is ignored after a while."""
        from mlflow.exceptions import MlflowException

        self._released.set()
        self._thread.join()
        try:
            with store.refusals(self._name):
                self._client.delete_registered_model_tag(self._name, self._key)
        except (MlflowException, RegistryError) as error:
            log.warning("%s: the lock was not released, and expires: %s", self._name, error)

    def _beat(self) -> None:
        while not self._released.wait(_BEAT_SECONDS):
            try:
                if self._key not in self._client.get_registered_model(self._name).tags:
                    return  # taken over; `check` says so
                self._client.set_registered_model_tag(self._name, self._key, _sign())
            except Exception:  # a thread that must outlive any fault of the server
                log.warning("%s: the lock was not renewed", self._name, exc_info=True)


@contextmanager
def hold_lock(category: str, *, timeout_seconds: float = 90.0) -> Iterator[Lock]:
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
        lock = Lock(client, name, token)
        try:
            yield lock
        finally:
            lock.release()
    finally:
        _held.discard(token)


def _wait(client: MlflowClient, name: str, token: str, timeout_seconds: float) -> None:
    started_at = time.monotonic()
    seen: dict[str, tuple[str, float]] = {}
    while True:
        client.set_registered_model_tag(name, _TAG + token, _sign())
        if not _others(client, name, token, seen):
            return
        client.delete_registered_model_tag(name, _TAG + token)
        if time.monotonic() - started_at > timeout_seconds:
            raise RegistryError(f"{name}: somebody else is deciding about it; try again")
        # spread out, so that two who met do not meet again
        time.sleep(random.SystemRandom().uniform(0.5, 1.5) * _PAUSE_SECONDS)


def _others(
    client: MlflowClient, name: str, token: str, seen: dict[str, tuple[str, float]]
) -> list[str]:
    """Tokens of other holders; the tags of those that cannot be at work any more are removed.

    Args:
        client: of the registry.
        name: of the registered model.
        token: our own.
        seen: each other holder's latest tag, and when it was seen first by our steady clock; updated.
    """
    others = []
    now = time.monotonic()
    for key, value in client.get_registered_model(name).tags.items():
        other = key.removeprefix(_TAG)
        if not key.startswith(_TAG) or other == token:
            continue
        if seen.get(other, ("", 0.0))[0] != value:
            seen[other] = (value, now)
        if _is_gone(other, value) or now - seen[other][1] > _STALE_SECONDS:
            client.delete_registered_model_tag(name, key)
        else:
            others.append(other)
    return others


def _sign() -> str:
    """Who holds a lock: renewed when, in which process, started when, on which machine."""
    process = psutil.Process()
    return f"{time.time()!r} {process.pid} {process.create_time():.0f} {platform.node()}"


def _is_gone(token: str, value: str) -> bool:
    """Whether a holder on this machine is known to be at work no more."""
    _, _, rest = value.partition(" ")
    number, _, rest = rest.partition(" ")
    started_at, _, host = rest.partition(" ")
    if host != platform.node():
        return False
    if int(number) == os.getpid():
        return token not in _held
    try:
        return abs(psutil.Process(int(number)).create_time() - float(started_at)) > 2.0
    except psutil.NoSuchProcess:
        return True
