"""A version of a registered model, as its tags hold it, and the tags of a new one."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from onenip.errors import RegistryError

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

PREFIX = "onenip-"

Approval = Literal["pending", "approved", "rejected", "provisional"]
Metrics = dict[str, float]
GateVerdict = Literal["promote", "hold", "reject"]

_METRIC_TAG = "metric."
_GATE_TAG = "gate"
_THRESHOLDS_TAG = "thresholds"


class GateResult(BaseModel):
    """What the gate found when it compared a challenger with the champion of its category.

    Attributes:
        verdict: promote, hold or reject.
        reasons: a sentence for each check that decided it.
        is_provisional: judged without real defects, because the category has no defective test
            images.
        numbers: what was measured, such as differences and the ends of their confidence intervals.
        judged_at: UTC.
        warnings: what training said of the threshold, and outliers among the normals, for who decides.
    """

    model_config = ConfigDict(frozen=True)

    verdict: GateVerdict
    reasons: tuple[str, ...]
    is_provisional: bool = False
    numbers: dict[str, float] = {}
    judged_at: datetime
    warnings: tuple[str, ...] = ()


class ThresholdChange(BaseModel):
    """A threshold that somebody decided on.

    Attributes:
        value: image score above which an image is anomalous; None is the model's own.
        at: UTC.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    value: float | None
    at: datetime


_THRESHOLDS = TypeAdapter(tuple[ThresholdChange, ...])


class Version(BaseModel):
    """One version of one category's registered model.

    Attributes:
        category: the product category.
        number: counted by MLflow from 1.
        digest: of the unified model that it points at, 64 hex digits.
        weights_uri: MLflow address of that model.
        aliases: of challenger, champion, previous, provisional.
        approval: pending, approved or rejected; provisional where nobody is to decide, because the
            model was never trained on the category and only stands in until a champion is approved.
        approver: who decided, empty while nobody did.
        decided_at: UTC, None while nobody did.
        reason: why, in the decider's words.
        approved_digest: the digest that was pinned at approval, empty before.
        metrics: of the category on the test set at registration; fractions in 0..1.
        gate: what the gate found, None while it was not asked.
        data_version: of the images that it was trained on.
        git_commit: of the code and params.
        created_at: UTC.
        run_id: MLflow's identifier of the training's run.
        made_from: hash of the model and images that a provisional version was made from.
        thresholds: that somebody decided on, oldest first; empty where the model's own counts.
    """

    model_config = ConfigDict(frozen=True)

    category: str
    number: int
    digest: str
    weights_uri: str
    aliases: tuple[str, ...] = ()
    approval: Approval
    approver: str = ""
    decided_at: datetime | None = None
    reason: str = ""
    approved_digest: str = ""
    metrics: Metrics
    gate: GateResult | None = None
    data_version: str = ""
    git_commit: str = ""
    created_at: datetime
    run_id: str = ""
    made_from: str = ""
    thresholds: tuple[ThresholdChange, ...] = ()

    @property
    def threshold(self) -> float | None:
        """The threshold that was decided on last; None where the model's own counts."""
        return self.thresholds[-1].value if self.thresholds else None

    @property
    def uri(self) -> str:
        """Address for MLflow, such as `models:/onenip-bottle/3`."""
        return f"models:/{registered_name(self.category)}/{self.number}"


def registered_name(category: str) -> str:
    """Name of a category's registered model; what MLflow refuses, or quotes with, is percent-encoded."""
    encoded = (urllib.parse.quote(c, safe="") if c in '/:%"' else c for c in category)
    return PREFIX + "".join(encoded)


def to_tags(
    *,
    digest: str,
    weights_uri: str,
    metrics: Metrics,
    facts: Mapping[str, str],
    approval: Approval = "pending",
) -> dict[str, str]:
    """Tags of a new version, which `to_version` reads back.

    Args:
        digest: of the unified model.
        weights_uri: MLflow address of the unified model.
        metrics: of the category; fractions in 0..1.
        facts: further tags, such as `data_version` and `git_commit`.
        approval: pending, or provisional.
    """
    return {
        **facts,
        "approval": approval,
        "digest": digest,
        "weights": weights_uri,
        **{f"{_METRIC_TAG}{name}": repr(value) for name, value in metrics.items()},
    }


def dump_thresholds(changes: Sequence[ThresholdChange]) -> dict[str, str]:
    """The tag that holds a version's decided thresholds, which `to_version` reads back."""
    return {_THRESHOLDS_TAG: _THRESHOLDS.dump_json(tuple(changes)).decode()}


def dump_gate_result(result: GateResult) -> dict[str, str]:
    """The tag that holds what the gate found, which `to_version` reads back."""
    return {_GATE_TAG: result.model_dump_json()}


def is_ours(version: ModelVersion) -> bool:
    """Whether a version was made by `onenip register`, and not by hand under the same name."""
    return "digest" in version.tags and "approval" in version.tags


def to_version(category: str, found: ModelVersion, aliases: Mapping[str, int]) -> Version:
    """Typed view of what MLflow returns.

    Raises:
        RegistryError: if the version was not made by `onenip register`, or its tags were damaged.
    """
    tags = found.tags
    number = int(found.version)
    try:
        return Version(
            category=category,
            number=number,
            digest=tags["digest"],
            weights_uri=tags["weights"],
            aliases=tuple(sorted(alias for alias, at in aliases.items() if at == number)),
            approval=tags["approval"],
            approver=tags.get("approver", ""),
            decided_at=tags.get("decided_at") or None,
            reason=tags.get("reason", ""),
            approved_digest=tags.get("approved_digest", ""),
            metrics={
                key.removeprefix(_METRIC_TAG): float(value)
                for key, value in tags.items()
                if key.startswith(_METRIC_TAG)
            },
            gate=GateResult.model_validate_json(tags[_GATE_TAG]) if _GATE_TAG in tags else None,
            data_version=tags.get("data_version", ""),
            git_commit=tags.get("git_commit", ""),
            created_at=datetime.fromtimestamp(found.creation_timestamp / 1000, tz=UTC),
            run_id=found.run_id or "",
            made_from=tags.get("made_from", ""),
            thresholds=_THRESHOLDS.validate_json(tags.get(_THRESHOLDS_TAG, "[]")),
        )
    except (KeyError, ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise RegistryError(f"{found.name} version {number}: unusable tags: {reason}") from error
