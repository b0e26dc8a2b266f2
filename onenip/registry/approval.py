"""Approve, reject, roll back, change a threshold, and record what was changed by hand in MLflow.

Every decision is taken while holding the category's lock, checks what the decider saw against what
the registry holds now, and ends in the audit trail. One that a kill cut short is completed by the
next command, whoever runs it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from onenip.errors import RegistryError
from onenip.registry import audit
from onenip.registry.audit import Entry
from onenip.registry.decisions import Deciding, Intent, Step, deciding, has_intents
from onenip.registry.tags import Approval, ThresholdChange, Version, dump_thresholds
from onenip.registry.versions import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    PROVISIONAL,
    Snapshot,
    champion,
    find_version,
    list_versions,
    read_aliases,
    read_snapshot,
    require_category,
)
from onenip.registry.weights import hash_stored

UNKNOWN = "unknown"

# an intent holds these twice and all decided thresholds, and is a tag of at most 5,000 characters
MAX_BY, MAX_REASON = 100, 1000  # characters
_KEPT_THRESHOLDS = 20  # of a version, the latest; the audit trail has all


def approve(
    category: str, *, by: str, reason: str, version: int | None = None, override: bool = False
) -> Version:
    """Make a category's challenger its champion; the champion so far becomes `previous`.

    The digest of the stored model is computed and pinned: nothing else is ever loaded as this
    version.

    Args:
        category: the product category.
        by: who approves.
        reason: why, kept with the version and in the audit trail.
        version: the version that was looked at; None: whichever waits now.
        override: approve although the gate rejected it.

    Raises:
        RegistryError: if nothing waits, somebody decided before, a newer version replaced this one,
            the gate rejected it, or the stored model is not the registered one.
    """
    _require(by=by, reason=reason)
    require_category(category)
    with deciding(category) as held:
        repeated = held.find_repeated("approve", by=by, reason=reason, version=version)
        if repeated is not None:
            return find_version(category, repeated.version)
        target = _choose(category, version)
        _check_gate(target, override=override)
        digest = hash_stored(target.weights_uri)
        if digest != target.digest:
            raise RegistryError(
                f"{category} version {target.number}: the stored model has digest {digest[:12]}, "
                f"registered was {target.digest[:12]}; it was changed and cannot be approved"
            )
        held.carry_out(_promotion(target, "approve", by=by, reason=reason))
    return find_version(category, target.number)


def reject(category: str, *, by: str, reason: str, version: int | None = None) -> Version:
    """Refuse a category's challenger; the champion stays.

    Args:
        category: the product category.
        by: who refuses.
        reason: why, kept with the version and in the audit trail.
        version: the version that was looked at; None: whichever waits now.

    Raises:
        RegistryError: if nothing waits, somebody decided before, or a newer version replaced it.
    """
    _require(by=by, reason=reason)
    require_category(category)
    with deciding(category) as held:
        repeated = held.find_repeated("reject", by=by, reason=reason, version=version)
        if repeated is not None:
            return find_version(category, repeated.version)
        target = _choose(category, version)
        steps = [_decision(target, "rejected", by=by, reason=reason)]
        if CHALLENGER in target.aliases:
            steps.append(Step(alias=CHALLENGER, version=0))
        held.carry_out(_intend(target, "reject", by=by, reason=reason, steps=steps))
    return find_version(category, target.number)


def rollback(category: str, *, by: str, reason: str, seen: Version | None = None) -> Version:
    """Undo the last decision about what serves: a threshold that was changed, else the champion.

    A champion that is taken down counts as rejected; the one before it serves again.

    Args:
        category: the product category.
        by: who rolls back.
        reason: why, kept with the version that is taken down and in the audit trail.
        seen: the champion as it was looked at; None: as it is.

    Returns:
        The version that serves now.

    Raises:
        RegistryError: if there is no champion, nothing to roll back to, or somebody decided since.
    """
    _require(by=by, reason=reason)
    require_category(category)
    with deciding(category) as held:
        repeated = held.find_repeated("rollback", by=by, reason=reason)
        if repeated is not None:
            return find_version(category, repeated.version)
        aliases = read_aliases(category)
        if CHAMPION not in aliases:
            raise RegistryError(f"{category}: nothing to roll back, there is no champion")
        bad = find_version(category, aliases[CHAMPION])
        _check_seen(bad, seen)
        if _is_threshold_last(bad):
            held.carry_out(_change(bad, "rollback", bad.thresholds[:-1], by=by, reason=reason))
            return find_version(category, bad.number)
        if PREVIOUS not in aliases:
            raise RegistryError(
                f"{category}: nothing to roll back to, there was no champion before"
            )
        good = find_version(category, aliases[PREVIOUS])
        steps = [
            Step(alias=CHAMPION, version=good.number),
            Step(alias=PREVIOUS, version=_approved_before(category, good.number)),
            _decision(bad, "rejected", by=by, reason=f"rolled back: {reason}"),
        ]
        held.carry_out(_intend(good, "rollback", by=by, reason=reason, steps=steps))
    return find_version(category, good.number)


def set_threshold(
    category: str,
    *,
    value: float | None,
    by: str,
    reason: str,
    alias: str = CHAMPION,
    seen: Version | None = None,
) -> Version:
    """Decide from which image score on a version calls an image anomalous.

    The version keeps every threshold that was decided; without one, its model's own counts.
    `rollback` undoes the last one.

    Args:
        category: the product category.
        value: image score; None goes back to the model's own.
        by: who decides.
        reason: why, kept in the audit trail.
        alias: champion or challenger.
        seen: the version as it was looked at; None: as it is.

    Raises:
        RegistryError: if no version has that alias, the value is no positive number, somebody decided
            since, or the registry cannot be reached.
    """
    _require(by=by, reason=reason)
    require_category(category)
    if alias not in (CHAMPION, CHALLENGER):
        raise RegistryError(f"{alias}: a threshold is set for {CHAMPION} or {CHALLENGER}")
    if value is not None and not (math.isfinite(value) and value > 0):
        raise RegistryError(f"{category}: a threshold is a positive number, not {value}")
    with deciding(category) as held:
        repeated = held.find_repeated("threshold", by=by, reason=reason)
        if repeated is not None:
            done = find_version(category, repeated.version)
            if done.threshold == value:
                return done
        number = read_aliases(category).get(alias)
        if number is None:
            raise RegistryError(f"{category} has no {alias}; see `onenip status`")
        target = find_version(category, number)
        _check_seen(target, seen)
        if target.threshold == value:
            return target
        changes = (*target.thresholds, ThresholdChange(value=value, at=audit.now()))
        held.carry_out(_change(target, "threshold", changes, by=by, reason=reason))
    return find_version(category, target.number)


def reconcile(snapshot: Snapshot | None = None) -> list[Entry]:
    """Complete decisions that a kill cut short, and record champions that were changed by hand.

    An alias that somebody set in MLflow's page is taken as their approval, because it is one: the
    digest is pinned and the version marked approved, by whom is unknown.

    Args:
        snapshot: of the registry; None reads one.

    Returns:
        Entries that are new in the audit trail, by category.

    Raises:
        RegistryError: if the registry cannot be reached, or the model that was put up by hand is
            not the one that was registered.
    """
    new = []
    for category in _find_changed(read_snapshot() if snapshot is None else snapshot):
        before = audit.read_trail(category)
        with deciding(category) as held:
            audit.settle(category)
            if _find_changed(read_snapshot(category)):
                _record_by_hand(category, held)
        new += audit.read_trail(category)[len(before) :]
    return new


def _require(*, by: str, reason: str) -> None:
    if not by.strip() or by.strip() == UNKNOWN:
        raise RegistryError("say who decides: --by NAME")
    if not (by.isprintable() and "".join(reason.split()).isprintable()):
        raise RegistryError("--by and --reason: no control characters")
    if not reason.strip():
        raise RegistryError("say why: --reason TEXT")
    for option, text, most in (("--by", by, MAX_BY), ("--reason", reason, MAX_REASON)):
        if len(text) > most:
            raise RegistryError(f"{option}: at most {most} characters, not {len(text)}")


def _choose(category: str, number: int | None) -> Version:
    """The version that a decision is about, if it may still be decided about."""
    listed = list_versions(category)
    versions = [version for version in listed if version.approval != "provisional"]
    waiting = next((v for v in versions if CHALLENGER in v.aliases), None)
    if number is None:
        if waiting is None:
            raise RegistryError(f"{category}: no challenger waits{_last_decision(versions)}")
        number = waiting.number
    target = next((v for v in listed if v.number == number), None)
    if target is None:
        raise RegistryError(f"{category}: there is no version {number}")
    if target.approval == "provisional":
        raise RegistryError(
            f"{category} version {number} is provisional: it was never trained on {category}, and "
            "answers until a trained version is approved"
        )
    if CHAMPION in target.aliases:
        raise RegistryError(
            f"{category} version {number} is champion already: {_describe_decision(target)}"
        )
    if target.approval != "pending":
        raise RegistryError(
            f"{category} version {number} was decided already: {_describe_decision(target)}"
        )
    newest = waiting or versions[-1]
    if newest.number > number:
        raise RegistryError(
            f"{category} version {number} was replaced by version {newest.number}; look at that one"
        )
    return target


def _check_seen(now: Version, seen: Version | None) -> None:
    if seen is None or (now.number, now.thresholds) == (seen.number, seen.thresholds):
        return
    at = "its own threshold" if now.threshold is None else f"threshold {now.threshold:.4g}"
    raise RegistryError(
        f"{now.category}: somebody decided since you looked; now it is version {now.number} at {at}. "
        "Look again"
    )


def _last_decision(versions: list[Version]) -> str:
    decided = [version for version in versions if version.decided_at is not None]
    if not decided:
        return ""
    last = max(decided, key=lambda version: (version.decided_at, version.number))
    return f"; version {last.number} was {_describe_decision(last)}"


def _describe_decision(version: Version) -> str:
    moment = f" at {version.decided_at:%Y-%m-%d %H:%M} UTC" if version.decided_at else ""
    return f"{version.approval} by {version.approver or UNKNOWN}{moment} ({version.reason})"


def _check_gate(version: Version, *, override: bool) -> None:
    if version.gate is not None and version.gate.verdict == "reject" and not override:
        reasons = "; ".join(version.gate.reasons)
        raise RegistryError(
            f"{version.category} version {version.number}: the gate rejected it ({reasons}); "
            "approve with --override if you know better"
        )


def _record_by_hand(category: str, held: Deciding) -> None:
    """Record who is champion since somebody moved the alias in MLflow."""
    trail = audit.read_trail(category)
    before, serving = trail[-1].champion if trail else 0, champion(category)
    if serving is None:
        reason = f"alias {CHAMPION} of version {before} was removed in MLflow itself"
        audit.record(category, "by-hand", version=before, by=UNKNOWN, reason=reason)
        return
    if hash_stored(serving.weights_uri) != serving.digest:
        raise RegistryError(
            f"{category} version {serving.number}: made champion by hand, but its stored model was "
            "changed since it was registered; it is not served"
        )
    reason = f"alias {CHAMPION} was moved from version {before or 'none'} in MLflow itself"
    held.carry_out(_promotion(serving, "by-hand", by=UNKNOWN, reason=reason, before=before))


def _promotion(
    version: Version, action: audit.Action, *, by: str, reason: str, before: int | None = None
) -> Intent:
    """A version becomes champion; the one before it, as MLflow's alias or `before` says, `previous`."""
    aliases = read_aliases(version.category)
    before = aliases.get(CHAMPION) if before is None else before
    steps = []
    is_pinned = version.approval == "approved" and version.approved_digest == version.digest
    if not is_pinned:  # a name and a reason that are there stay
        steps.append(_decision(version, "approved", by=by, reason=reason))
    if before and before != version.number:
        steps.append(Step(alias=PREVIOUS, version=before))
    steps.append(Step(alias=CHAMPION, version=version.number))
    if PROVISIONAL in aliases:
        steps.append(Step(alias=PROVISIONAL, version=0))
    if CHALLENGER in version.aliases:
        steps.append(Step(alias=CHALLENGER, version=0))
    return _intend(version, action, by=by, reason=reason, steps=steps)


def _change(
    version: Version,
    action: audit.Action,
    thresholds: Sequence[ThresholdChange],
    *,
    by: str,
    reason: str,
) -> Intent:
    """A version gets other thresholds, of which the last one counts."""
    value = thresholds[-1].value if thresholds else None
    before, after = ("its own" if v is None else repr(v) for v in (version.threshold, value))
    return _intend(
        version,
        action,
        by=by,
        reason=reason,
        steps=[Step(version=version.number, tags=dump_thresholds(thresholds[-_KEPT_THRESHOLDS:]))],
        note=f"threshold {after}, before {before}",
    )


def _decision(version: Version, approval: Approval, *, by: str, reason: str) -> Step:
    """Tags that say what was decided about a version."""
    moment = audit.now().isoformat()
    tags = {"approver": by, "decided_at": moment, "reason": reason, "approval": approval}
    if approval == "approved":
        tags = {"approved_digest": version.digest, "approved_at": moment} | tags
    return Step(version=version.number, tags=tags)


def _intend(
    version: Version,
    action: audit.Action,
    *,
    by: str,
    reason: str,
    steps: Sequence[Step],
    note: str = "",
) -> Intent:
    return Intent(
        action=action,
        version=version.number,
        by=by,
        reason=reason,
        note=note,
        digest=version.digest,
        steps=tuple(steps),
    )


def _find_changed(snapshot: Snapshot) -> list[str]:
    """Categories with an intent, or with another champion than the audit trail says."""
    last = audit.read_last(snapshot) if snapshot.standings else {}
    return [
        name
        for name, one in snapshot.standings.items()
        if has_intents(one.tags)
        or one.aliases.get(CHAMPION, 0) != (last[name].champion if name in last else 0)
    ]


def _is_threshold_last(version: Version) -> bool:
    """Whether a threshold was the last decision about an approved version."""
    changes = version.thresholds
    return bool(changes) and (version.decided_at is None or changes[-1].at > version.decided_at)


def _approved_before(category: str, number: int) -> int:
    """The latest approved version before one, 0 if there is none."""
    numbers = [
        version.number
        for version in list_versions(category)
        if version.approval == "approved" and version.number < number
    ]
    return max(numbers, default=0)
