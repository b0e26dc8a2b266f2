"""Who becomes champion: approve, reject, roll back, and notice what was done by hand.

Every decision is taken while holding the category's turn, checks what the decider saw against what
the registry holds now, and ends in the audit trail. A decision that a kill cut short is completed
by taking it again, or by `reconcile`.
"""

from __future__ import annotations

from onenip.errors import RegistryError
from onenip.registry import audit
from onenip.registry.audit import Entry
from onenip.registry.lock import hold_lock
from onenip.registry.publishing import hash_stored
from onenip.registry.versions import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    PROVISIONAL,
    Version,
    champion,
    find_version,
    list_categories,
    list_versions,
    read_aliases,
    require_category,
    set_alias,
    set_tags,
)

UNKNOWN = "unknown"

_ROLLED_BACK = "rolled back: "


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
    with hold_lock(category):
        target = _choose(category, version)
        _check_gate(target, override=override)
        digest = hash_stored(target.weights_uri)
        if digest != target.digest:
            raise RegistryError(
                f"{category} version {target.number}: the stored model has digest {digest[:12]}, "
                f"registered was {target.digest[:12]}; it was changed and cannot be approved"
            )
        _promote(target, by=by, reason=reason, action="approve")
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
    with hold_lock(category):
        target = _choose(category, version)
        _decide(target, approval="rejected", by=by, reason=reason)
        if CHALLENGER in target.aliases:
            set_alias(category, CHALLENGER, None)
        _record(target, action="reject", by=by, reason=reason)
        return find_version(category, target.number)


def rollback(category: str, *, by: str, reason: str) -> Version:
    """Bring back the champion before this one; the one that is taken down counts as rejected.

    Args:
        category: the product category.
        by: who rolls back.
        reason: why, kept with the version that is taken down and in the audit trail.

    Returns:
        The version that serves now.

    Raises:
        RegistryError: if there is no champion, or none before it.
    """
    _require(by=by, reason=reason)
    require_category(category)
    with hold_lock(category):
        aliases = read_aliases(category)
        if CHAMPION not in aliases:
            raise RegistryError(f"{category}: nothing to roll back, there is no champion")
        if PREVIOUS not in aliases:
            raise RegistryError(
                f"{category}: nothing to roll back to, there was no champion before"
            )
        bad = find_version(category, aliases[CHAMPION])
        good = find_version(category, aliases[PREVIOUS])
        if bad.number != good.number:  # equal where a kill came before the record
            _decide(bad, approval="rejected", by=by, reason=f"{_ROLLED_BACK}{reason}")
            set_alias(category, CHAMPION, good.number)
        earlier = _approved_before(category, good.number)
        set_alias(category, PREVIOUS, earlier)
        _record(good, action="rollback", by=by, reason=reason)
        return find_version(category, good.number)


def reconcile(category: str) -> list[Entry]:
    """Notice a champion that changed without a decision here, and record it.

    An alias that somebody set in MLflow's page is taken as their approval, because it is one: the
    digest is pinned and the version marked approved, by whom is unknown. A decision of ours that a
    kill cut short before it was recorded is recorded under the name that it was taken in.

    Raises:
        RegistryError: if the registry cannot be reached, or the model that was put up by hand is
            not the one that was registered.
    """
    require_category(category)
    if _recorded_champion(category) == read_aliases(category).get(CHAMPION, 0):
        return []  # the common case needs no turn
    with hold_lock(category):
        before = _recorded_champion(category)
        serving = champion(category)
        if before == (serving.number if serving else 0):
            return []
        if serving is None:
            reason = f"alias {CHAMPION} of version {before} was removed in MLflow itself"
            return [audit.record(category, "by-hand", version=before, by=UNKNOWN, reason=reason)]
        left = find_version(category, before) if before else None
        if left and left.approval == "rejected" and left.reason.startswith(_ROLLED_BACK):
            set_alias(category, PREVIOUS, _approved_before(category, serving.number))
            reason = left.reason.removeprefix(_ROLLED_BACK)
            return [_record(serving, action="rollback", by=left.approver, reason=reason)]
        if serving.approval == "approved" and serving.approver != UNKNOWN:
            reason = serving.reason or "completed after an interruption"
            return [_record(serving, action="approve", by=serving.approver, reason=reason)]
        if hash_stored(serving.weights_uri) != serving.digest:
            raise RegistryError(
                f"{category} version {serving.number}: made champion by hand, but its stored model "
                "was changed since it was registered; it is not served"
            )
        reason = f"alias {CHAMPION} was moved from version {before or 'none'} in MLflow itself"
        _decide(serving, approval="approved", by=UNKNOWN, reason=reason)
        if CHALLENGER in serving.aliases:
            set_alias(category, CHALLENGER, None)
        set_alias(category, PROVISIONAL, None)
        if before and before != serving.number:
            set_alias(category, PREVIOUS, before)
        return [_record(serving, action="by-hand", by=UNKNOWN, reason=reason)]


def reconcile_all() -> list[Entry]:
    """`reconcile` for every category, sorted."""
    return [entry for category in list_categories() for entry in reconcile(category)]


def _require(*, by: str, reason: str) -> None:
    if not by.strip() or by.strip() == UNKNOWN:
        raise RegistryError("say who decides: --by NAME")
    if not reason.strip():
        raise RegistryError("say why: --reason TEXT")


def _choose(category: str, number: int | None) -> Version:
    """The version that a decision is about, if it may still be decided about."""
    listed = list_versions(category)
    versions = [version for version in listed if version.approval != "provisional"]
    waiting = next((v for v in versions if CHALLENGER in v.aliases), None)
    if number is None:
        if waiting is None:
            raise RegistryError(f"{category}: no challenger waits{_last_decision(versions)}")
        return waiting
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
    newest = waiting or versions[-1]
    if newest.number > number:
        raise RegistryError(
            f"{category} version {number} was replaced by version {newest.number}; look at that one"
        )
    return target


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


def _promote(version: Version, *, by: str, reason: str, action: audit.Action) -> None:
    """Tags, then aliases, then the record: the same call completes what a kill cut short."""
    category = version.category
    _decide(version, approval="approved", by=by, reason=reason)
    before = read_aliases(category).get(CHAMPION)
    if before is not None and before != version.number:
        set_alias(category, PREVIOUS, before)
    set_alias(category, CHAMPION, version.number)
    set_alias(category, PROVISIONAL, None)
    if CHALLENGER in version.aliases:
        set_alias(category, CHALLENGER, None)
    _record(version, action=action, by=by, reason=reason)


def _decide(version: Version, *, approval: str, by: str, reason: str) -> None:
    tags = {
        "approver": by,
        "decided_at": audit.now().isoformat(),
        "reason": reason,
        "approval": approval,
    }
    if approval == "approved":
        tags = {"approved_digest": version.digest, "approved_at": tags["decided_at"]} | tags
    set_tags(version.category, version.number, tags)


def _record(version: Version, *, action: audit.Action, by: str, reason: str) -> Entry:
    return audit.record(
        version.category,
        action,
        version=version.number,
        by=by,
        reason=reason,
        digest=version.digest,
    )


def _recorded_champion(category: str) -> int:
    trail = audit.read_trail(category)
    return trail[-1].champion if trail else 0


def _approved_before(category: str, number: int) -> int | None:
    """The latest approved version before one, None if there is none."""
    numbers = [
        version.number
        for version in list_versions(category)
        if version.approval == "approved" and version.number < number
    ]
    return max(numbers, default=None)
