"""The record of decisions: an MLflow run for each, chained by hashes, never changed.

Every entry holds the hash of the one before it of the same category, and the registered model names
the last one, from which reading and writing go on. An entry that was removed, altered, sealed anew or
forked off is noticed, unless whoever did it also rewrote every entry after it and the registered
model's tag: there is no secret.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from onenip.registry import store
from onenip.registry.tags import registered_name
from onenip.registry.versions import CHAMPION, Snapshot, read_snapshot

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "onenip-audit"
_NOTE = "The audit trail: who decided what about which version, and why; `onenip audit` checks it."

Action = Literal[
    "register", "gate", "approve", "reject", "rollback", "by-hand", "provisional", "threshold"
]

HEAD_TAG = "onenip.audit_head"

_TAG = "audit."
_START = "0" * 64  # what the first entry of a category names as the one before it
_PAGE = 1000  # entries at a time
_NAMED = 100  # entries asked for by their identifiers at a time


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
    category: str,
    action: Action,
    *,
    version: int,
    by: str,
    reason: str,
    digest: str = "",
    at: datetime | None = None,
) -> Entry:
    """Append an entry that names the present champion.

    The caller holds the category's lock.

    Args:
        category: the product category.
        action: what was done.
        version: the version that it was done to.
        by: who did it.
        reason: why.
        digest: of the model of that version.
        at: UTC; None is now.

    Raises:
        RegistryError: if the store cannot be reached.
    """
    client = store.connect()
    with store.refusals("audit trail"):
        model = client.get_registered_model(registered_name(category))
    entry = Entry(
        at=at or now(),
        category=category,
        action=action,
        version=version,
        by=by,
        reason=reason,
        digest=digest,
        champion=int(model.aliases.get(CHAMPION, 0)),
        before=_settle(client, category, model.tags),
    )
    entry = entry.model_copy(update={"seal": entry.hash})
    _finish(client, entry, _create_run(client, entry))
    return entry


def settle(category: str) -> None:
    """Finish an entry that a kill left half-written. The caller holds the category's lock.

    Raises:
        RegistryError: if the store cannot be reached.
    """
    client = store.connect()
    with store.refusals("audit trail"):
        tags = client.get_registered_model(registered_name(category)).tags
    _settle(client, category, tags)


def find_entry(
    category: str, action: Action, version: int, *, by: str, at: datetime
) -> Entry | None:
    """The entry of one decision, None if it was not recorded.

    Raises:
        RegistryError: if the store cannot be reached.
    """
    if store.is_absent():
        return None
    runs = _find_runs(store.connect(), category, f"attributes.start_time = {_to_ms(at)}")
    found = map(_to_entry, runs)
    wanted = (action, version, by, at)
    return next((e for e in found if (e.action, e.version, e.by, e.at) == wanted), None)


def read_trail(category: str | None = None) -> list[Entry]:
    """Entries of a category, or of all, oldest first.

    Raises:
        RegistryError: if the store cannot be reached.
    """
    if store.is_absent():
        return []
    return _in_order([_to_entry(run) for run in _find_runs(store.connect(), category)])


def read_last(snapshot: Snapshot) -> dict[str, Entry]:
    """The last entry of each category of a snapshot that has any.

    Only entries that the registered models name are read. Where one is missing, was altered, or was
    written before they named it, all are.

    Raises:
        RegistryError: if the store cannot be reached.
    """
    heads = {name: _split_head(one.tags) for name, one in snapshot.standings.items()}
    runs = sorted(run_id for _, run_id in heads.values() if run_id)
    client, found = store.connect(), {}
    for start in range(0, len(runs), _NAMED):
        named = ", ".join(f"'{run_id}'" for run_id in runs[start : start + _NAMED])
        for run in _find_runs(client, None, f"attributes.run_id IN ({named})"):
            entry = _to_entry(run)
            found[entry.category] = entry
    last = {name: e for name, e in found.items() if e.hash == heads.get(name, ("", ""))[0]}
    if heads.keys() - last.keys():
        last = {entry.category: entry for entry in read_trail()} | last
    return last


def read_heads(category: str | None = None) -> dict[str, str]:
    """Hash of the last entry by category, as its registered model keeps it; "" where it keeps none.

    Args:
        category: only this one; None is all registered ones.

    Raises:
        RegistryError: if the store cannot be reached.
    """
    standings = read_snapshot(category).standings
    return {name: _split_head(one.tags)[0] for name, one in standings.items()}


def find_breaks(trail: list[Entry], heads: Mapping[str, str] | None = None) -> list[str]:
    """Sentences about entries that are missing, were altered or contradict each other; empty if none.

    Args:
        trail: entries of one category, or of several.
        heads: as `read_heads` gives them, to notice that a last entry is missing or was sealed anew.
    """
    hashes = {entry.hash for entry in trail} | {_START}
    followers = Counter((entry.category, entry.before) for entry in trail)
    breaks = []
    for entry in trail:
        name = f"“{entry.action} version {entry.version}” of {entry.at:%Y-%m-%d %H:%M:%S}"
        if entry.seal != entry.hash:
            breaks.append(f"{entry.category}: {name} was altered")
        if entry.before not in hashes:
            breaks.append(f"{entry.category}: the entry before {name} is missing or was altered")
        if followers[entry.category, entry.before] > 1:
            breaks.append(f"{entry.category}: {name} is not the only one that follows its entry")
    last = {entry.category: entry.hash for entry in trail}
    for category, head in (heads or {}).items():
        if last.get(category, "") != head:
            breaks.append(f"{category}: the last entry is missing or was altered")
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


def _settle(client: MlflowClient, category: str, tags: Mapping[str, str]) -> str:
    """Hash of a category's last entry; entries that the registered model does not name yet are finished."""
    head, _ = _split_head(tags)
    if head:
        last, runs = head, []
        while after := _find_runs(client, category, f"tags.`{_TAG}before` = '{last}'"):
            runs.append(after[-1])
            last = _to_entry(after[-1]).hash
        left = [_to_entry(run) for run in runs]
    else:  # none was written yet, or before entries were named
        runs = _find_runs(client, category)
        left = _in_order([_to_entry(run) for run in runs])
    ids = {_to_entry(run).hash: run.info.run_id for run in runs}
    for entry in left if head else left[-1:]:
        _finish(client, entry, ids[entry.hash])
    return left[-1].hash if left else head or _START


def _finish(client: MlflowClient, entry: Entry, run_id: str) -> None:
    """End the run of a category's last entry, and name it in the registered model."""
    with store.refusals("audit trail"):
        client.set_terminated(run_id, end_time=_to_ms(entry.at))
        name = registered_name(entry.category)
        client.set_registered_model_tag(name, HEAD_TAG, f"{entry.hash} {run_id}")


def _split_head(tags: Mapping[str, str]) -> tuple[str, str]:
    """Hash and run of a category's last entry, as its registered model names them; empty if it does not."""
    head, _, run_id = tags.get(HEAD_TAG, "").partition(" ")
    return head, run_id


def _find_runs(client: MlflowClient, category: str | None, *conditions: str) -> list[Run]:
    """Runs that hold the entries of a category, or of all, and meet conditions; the latest first."""
    if category is not None:
        like = category.replace('"', "_")  # which stands for any letter
        conditions = (f'tags.`{_TAG}category` LIKE "{like}"', *conditions)
    wanted = " AND ".join(conditions)
    with store.refusals("audit trail"):
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return []
        ids = [experiment.experiment_id]
        found = store.read_pages(
            lambda token: client.search_runs(ids, wanted, max_results=_PAGE, page_token=token)
        )
    return [
        run
        for run in found
        if f"{_TAG}seal" in run.data.tags
        and category in (None, run.data.tags.get(f"{_TAG}category"))
    ]


def _create_run(client: MlflowClient, entry: Entry) -> str:
    experiment_id = store.ensure_experiment(client, EXPERIMENT, note=_NOTE)
    fields = entry.model_dump(mode="json")
    with store.refusals("audit trail"):
        run = client.create_run(
            experiment_id,
            start_time=_to_ms(entry.at),
            run_name=f"{entry.action} {entry.category} {entry.version or ''}".strip(),
            tags={f"{_TAG}{key}": str(value) for key, value in fields.items()},
        )
    return str(run.info.run_id)


def _to_entry(run: Run) -> Entry:
    fields = {
        key.removeprefix(_TAG): value
        for key, value in run.data.tags.items()
        if key.startswith(_TAG)
    }
    return Entry.model_validate(fields)


def _to_ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
