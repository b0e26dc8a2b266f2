"""Decisions about a category's versions, each written as an intent before anything changes.

An intent is a tag on the category's registered model and holds every step. Whoever decides next about
the category, by whatever command, first completes the intents that a kill left behind. Every step
may be repeated; the entry in the audit trail comes last and marks the decision as done.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onenip.errors import RegistryError
from onenip.registry import audit, store
from onenip.registry.lock import Lock, hold_lock
from onenip.registry.tags import registered_name
from onenip.registry.versions import list_versions, set_alias, set_tags

ITSELF = -1  # number of the version that is about to be made, by its digest

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
        """The same intent with the number of the version that was made."""
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
        self._intended: list[Intent] = []

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

    def intend(self, intent: Intent) -> None:
        """Write an intent, before anything of it is done.

        Raises:
            RegistryError: if the lock was lost, or the registry cannot be reached.
        """
        self._lock.check()
        name = registered_name(self._category)
        with store.refusals(name):
            store.connect().set_registered_model_tag(name, intent.tag, intent.model_dump_json())
        self._intended.append(intent)

    def carry_out(self, intent: Intent) -> None:
        """Write an intent, if it was not written yet, do its steps and record it.

        Raises:
            RegistryError: if the lock was lost, or the registry cannot be reached; the next command
                completes what was written.
        """
        if intent.id not in {one.id for one in self._intended}:
            self.intend(intent)
        _carry_out(self._category, intent)

    def forget(self) -> None:
        """Remove the intents that were carried out; the lock may be released already.

        One that cannot be removed now is found as done by the next command.
        """
        for intent in self._intended:
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
        settled = []
        for intent in find_intents(category):
            lock.check()
            if done := _find_version(category, intent):
                if audit.find_entry(category, done.action, done.version, by=done.by, at=done.at):
                    audit.settle(category)
                else:
                    _carry_out(category, done)
                settled.append(done)
            _forget(category, intent)
        held = Deciding(category, lock, settled)
        yield held
    held.forget()  # last of all: whoever repeats a killed command finds it until here


def find_intents(category: str) -> list[Intent]:
    """Intents that were not forgotten yet, oldest first.

    Raises:
        RegistryError: if one is damaged, or the registry cannot be reached.
    """
    name = registered_name(category)
    with store.refusals(name):
        tags = store.connect().get_registered_model(name).tags
    found = []
    for key in filter(_is_intent, tags):
        try:
            found.append(Intent.model_validate_json(tags[key]))
        except ValidationError as error:
            raise RegistryError(f"{name}: tag {key} is damaged; remove it in MLflow") from error
    return sorted(found, key=lambda intent: intent.at)


def has_intents(tags: Mapping[str, str]) -> bool:
    """Whether the tags of a registered model hold intents."""
    return any(map(_is_intent, tags))


def _is_intent(key: str) -> bool:
    return key.startswith(_TAG)


def _find_version(category: str, intent: Intent) -> Intent | None:
    """An intent with the number of its version; None if a kill came before the version was made."""
    if intent.version != ITSELF:
        return intent
    made = [one.number for one in list_versions(category) if one.digest == intent.digest]
    return intent.about(made[-1]) if made else None


def _carry_out(category: str, intent: Intent) -> None:
    """Do an intent's steps and record it."""
    for step in intent.steps:
        if step.alias:
            set_alias(category, step.alias, step.version or None)
        else:
            set_tags(category, step.version, step.tags)
    audit.record(
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
    name = registered_name(category)
    with store.refusals(name):
        store.connect().delete_registered_model_tag(name, intent.tag)
