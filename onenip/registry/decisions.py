"""Decisions about a category's versions, each written as an intent before anything changes.

An intent is a tag on the version that it is about and holds every step. Whoever decides next about
the category, by whatever command, first completes the intents that a kill left behind. Every step
may be repeated; the entry in the audit trail comes last and marks the decision as done.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onenip.errors import RegistryError
from onenip.registry import audit, store
from onenip.registry.lock import Lock, hold_lock
from onenip.registry.versions import is_ours, registered_name, set_alias, set_tags

ITSELF = -1  # number of the version that carries the intent, where it is not known yet

_TAG = "onenip.intent."

log = logging.getLogger(__name__)


class Step(BaseModel):
    """One change: tags of a version, or an alias.

    Attributes:
        version: gets the tags, or is what the alias names from now on; 0 removes the alias.
        alias: to move; empty for tags.
        tags: to set, in order.
    """

    model_config = ConfigDict(frozen=True)

    version: int
    alias: str = ""
    tags: dict[str, str] = {}


class Intent(BaseModel):
    """One decision with all that it changes.

    Attributes:
        id: unique, 32 hex digits.
        at: UTC.
        action: as in the audit trail.
        version: the version that is decided about.
        by: who decides.
        reason: why, in the decider's words.
        note: what changes, put before the reason in the audit trail.
        digest: of the version's model.
        steps: changes, in order.
    """

    model_config = ConfigDict(frozen=True)

    id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    at: datetime = Field(default_factory=audit.now)
    action: audit.Action
    version: int
    by: str
    reason: str
    note: str = ""
    digest: str
    steps: tuple[Step, ...]

    @property
    def tag(self) -> str:
        """Key of the tag that holds it."""
        return _TAG + self.id

    def about(self, number: int) -> Intent:
        """The same intent with the number of the version that carries it."""
        steps = [
            step.model_copy(update={"version": number}) if step.version == ITSELF else step
            for step in self.steps
        ]
        version = number if self.version == ITSELF else self.version
        return self.model_copy(update={"version": version, "steps": tuple(steps)})


class Deciding:
    """The right to decide about a category, for as long as its lock is held.

    Args:
        category: the product category.
        lock: of the category.
        settled: intents of killed commands, completed by now.
    """

    def __init__(self, category: str, lock: Lock, settled: Sequence[Intent]) -> None:
        self.settled = tuple(settled)
        self._category = category
        self._lock = lock
        self._carried_out: list[Intent] = []

    def find_repeated(
        self, action: audit.Action, *, by: str, reason: str, version: int | None = None
    ) -> Intent | None:
        """The same decision, if it was cut short before and is completed now."""
        return next(
            (
                intent
                for intent in self.settled
                if (intent.action, intent.by, intent.reason) == (action, by, reason)
                and version in (None, intent.version)
            ),
            None,
        )

    def carry_out(self, intent: Intent, *, is_written: bool = False) -> audit.Entry:
        """Write an intent, do its steps and record it.

        Args:
            intent: what to do.
            is_written: its version was created with it.

        Raises:
            RegistryError: if the lock was lost, or the registry cannot be reached; the next command
                completes what was written.
        """
        self._lock.check()
        if not is_written:
            set_tags(self._category, intent.version, {intent.tag: intent.model_dump_json()})
        self._carried_out.append(intent)
        return _carry_out(self._category, intent)

    def forget(self) -> None:
        """Remove the intents that were carried out; the lock may be released already.

        One that cannot be removed now is found as done by the next command.
        """
        for intent in self._carried_out:
            try:
                _forget(self._category, intent)
            except RegistryError as error:
                log.warning("%s; the decision itself is done", error)


@contextmanager
def deciding(category: str) -> Iterator[Deciding]:
    """Hold a category's lock, with all earlier decisions completed.

    Args:
        category: the product category; it must have a registered model.

    Raises:
        RegistryError: if another holds the lock for too long, or the registry cannot be reached.
    """
    with hold_lock(category) as lock:
        settled = find_intents(category)
        for intent in settled:
            lock.check()
            _carry_out(category, intent)
            _forget(category, intent)
        held = Deciding(category, lock, settled)
        yield held
    held.forget()  # last of all: whoever repeats a killed command finds it until here


def find_intents(category: str) -> list[Intent]:
    """Intents that were not forgotten yet, oldest first.

    Raises:
        RegistryError: if one is damaged, or the registry cannot be reached.
    """
    client = store.connect()
    name = registered_name(category)
    with store.refusals(f"versions of {name}"):
        versions = client.search_model_versions(f'name = "{name}"', max_results=10_000)
    found = []
    for version in versions:
        for key, value in version.tags.items():
            if key.startswith(_TAG) and is_ours(version):
                try:
                    intent = Intent.model_validate_json(value)
                except ValidationError as error:
                    raise RegistryError(
                        f"{name} version {version.version}: tag {key} is damaged; remove it in MLflow"
                    ) from error
                found.append(intent.about(int(version.version)))
    return sorted(found, key=lambda intent: intent.at)


def _carry_out(category: str, intent: Intent) -> audit.Entry:
    """Do an intent's steps, unless they were recorded as done."""
    recorded = audit.find_entry(category, intent.action, intent.version, by=intent.by, at=intent.at)
    if recorded is None:
        for step in intent.steps:
            if step.alias:
                set_alias(category, step.alias, step.version or None)
            else:
                set_tags(category, step.version, step.tags)
    return audit.record(
        category,
        intent.action,
        version=intent.version,
        by=intent.by,
        reason=f"{intent.note}: {intent.reason}" if intent.note else intent.reason,
        digest=intent.digest,
        at=intent.at,
    )


def _forget(category: str, intent: Intent) -> None:
    """Remove an intent's tag; somebody else may have removed it."""
    from mlflow.exceptions import MlflowException

    client = store.connect()
    name = registered_name(category)
    with store.refusals(f"version {intent.version} of {name}"):
        try:
            client.delete_model_version_tag(name, str(intent.version), intent.tag)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
