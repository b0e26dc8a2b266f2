"""The record of decisions: an MLflow run for each, chained by hashes, never changed.

Every entry holds the hash of the one before it of the same category, so a removed or altered entry
is noticed when the trail is read.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from onenip.registry import store
from onenip.registry.versions import CHAMPION, read_aliases

if TYPE_CHECKING:
    from mlflow.entities import Run

EXPERIMENT = "onenip-audit"

Action = Literal["register", "gate", "approve", "reject", "rollback", "by-hand", "provisional"]

_TAG = "audit."
_START = "0" * 64  # what the first entry of a category names as the one before it


class Entry(BaseModel):
    """One decision, or one change that somebody made by hand.

    Attributes:
        at: UTC.
        category: the product category.
        action: what was done.
        version: the version that it was done to; 0 where an alias was removed.
        by: who did it, as they said; "unknown" for a change by hand.
        reason: why, in their words.
        digest: of the model of that version.
        champion: version that serves after it, 0 if none does.
        before: hash of the category's entry before this one.
        seal: the entry's own hash when it was written.
    """

    model_config = ConfigDict(frozen=True)

    at: datetime
    category: str
    action: Action
    version: int
    by: str
    reason: str
    digest: str = ""
    champion: int = 0
    before: str = _START
    seal: str = ""

    @property
    def hash(self) -> str:
        """sha256 of the entry's content, 64 hex digits."""
        fields = self.model_dump(mode="json", exclude={"seal"})
        content = json.dumps(fields, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()


def record(
    category: str, action: Action, *, version: int, by: str, reason: str, digest: str = ""
) -> Entry:
    """Append an entry that names the present champion. The caller holds the category's lock.

    Args:
        category: the product category.
        action: what was done.
        version: the version that it was done to.
        by: who did it.
        reason: why.
        digest: of the model of that version.

    Raises:
        RegistryError: if the store cannot be reached.
    """
    trail = read_trail(category)
    entry = Entry(
        at=now(),
        category=category,
        action=action,
        version=version,
        by=by,
        reason=reason,
        digest=digest,
        champion=read_aliases(category).get(CHAMPION, 0),
        before=trail[-1].hash if trail else _START,
    )
    entry = entry.model_copy(update={"seal": entry.hash})
    client = store.connect()
    experiment_id = store.ensure_experiment(client, EXPERIMENT)
    fields = entry.model_dump(mode="json")
    tags = {f"{_TAG}{key}": str(value) for key, value in fields.items()}
    with store.refusals("audit trail"):
        run = client.create_run(
            experiment_id,
            start_time=_to_ms(entry.at),
            run_name=f"{entry.action} {entry.category} {entry.version or ''}".strip(),
            tags=tags,
        )
        client.set_terminated(run.info.run_id, end_time=_to_ms(entry.at))
    return entry


def read_trail(category: str | None = None) -> list[Entry]:
    """Entries of a category, or of all, oldest first.

    Raises:
        RegistryError: if the store cannot be reached.
    """
    if store.is_absent():
        return []
    client = store.connect()
    found: list[Run] = []
    token: str | None = None
    with store.refusals("audit trail"):
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return []
        experiment_id = experiment.experiment_id
        while token is None or token:
            page = client.search_runs([experiment_id], page_token=token)
            found += page
            token = page.token or ""
    entries = [_to_entry(run) for run in found if f"{_TAG}seal" in run.data.tags]
    chosen = [entry for entry in entries if category in (None, entry.category)]
    return _in_order(chosen)


def find_breaks(trail: list[Entry]) -> list[str]:
    """Sentences about entries that are missing or were altered; empty if the trail is whole."""
    hashes = {entry.hash for entry in trail} | {_START}
    breaks = []
    for entry in trail:
        name = f"“{entry.action} version {entry.version}” of {entry.at:%Y-%m-%d %H:%M:%S}"
        if entry.seal != entry.hash:
            breaks.append(f"{entry.category}: {name} was altered")
        if entry.before not in hashes:
            breaks.append(f"{entry.category}: the entry before {name} is missing or was altered")
    return breaks


def now() -> datetime:
    """This moment, UTC, to the millisecond that MLflow keeps."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def _in_order(entries: list[Entry]) -> list[Entry]:
    """By time; within a category by the chain, so that a clock that jumped back changes nothing."""
    keyed: list[tuple[datetime, str, int, Entry]] = []
    for category in sorted({entry.category for entry in entries}):
        moment = datetime.min.replace(tzinfo=UTC)
        chain = _follow([entry for entry in entries if entry.category == category])
        for place, entry in enumerate(chain):
            moment = max(moment, entry.at)
            keyed.append((moment, category, place, entry))
    return [entry for *_, entry in sorted(keyed, key=lambda key: key[:3])]


def _follow(entries: list[Entry]) -> list[Entry]:
    """One category's entries along their chain; what is cut off from its start follows by time."""
    by_before = {entry.before: entry for entry in entries}
    chain: list[Entry] = []
    at = _START
    while at in by_before:
        chain.append(by_before.pop(at))
        at = chain[-1].hash
    seen = {entry.hash for entry in chain}
    return chain + sorted((e for e in entries if e.hash not in seen), key=lambda e: e.at)


def _to_entry(run: Run) -> Entry:
    fields = {
        key.removeprefix(_TAG): value
        for key, value in run.data.tags.items()
        if key.startswith(_TAG)
    }
    return Entry.model_validate(fields)


def _to_ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
