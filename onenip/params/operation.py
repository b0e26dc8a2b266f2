"""Sections about operation: registration, the gate, retraining, drift, notices."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from onenip.errors import ParamsError
from onenip.params.section import Fraction, Section

GATE_METRICS = (
    "image_auroc",
    "image_ap",
    "image_f1_max",
    "accuracy",
    "recall",
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1_max",
    "aupro",
)


REGISTRY_EVENTS = (
    "registered_model.created",
    "model_version.created",
    "model_version_tag.set",
    "model_version_tag.deleted",
    "model_version_alias.created",
    "model_version_alias.deleted",
)


class RegisterParams(Section):
    """Names in the model registry."""

    experiment: str = Field("onenip", description="MLflow experiment that runs are logged to")


class CategoryGateParams(Section):
    """Limits of the gate for one category; what is left out is as for all."""

    floors: dict[str, float] | None = Field(
        None, description="least figure on the test set by name, fractions"
    )
    synthetic_floors: dict[str, float] | None = Field(
        None, description="the same on synthetic anomalies, where the test set has no defects"
    )
    margins: dict[str, float] | None = Field(
        None, description="by how much a figure may be worse than the champion's, fractions"
    )
    max_false_alarm_rate: Fraction | None = Field(
        None, ge=0, le=1, description="share of held-out normal images called anomalous"
    )
    min_normals: int | None = Field(
        None, ge=1, description="held-out normal images needed to count alarms on"
    )
    max_seconds: float | None = Field(None, gt=0, description="median time an image, in seconds")
    max_slowdown: float | None = Field(
        None, gt=0, description="median time an image, as a multiple of the champion's"
    )

    @model_validator(mode="after")
    def _name_figures(self) -> Self:
        for key in ("floors", "synthetic_floors", "margins"):
            for name in getattr(self, key) or {}:
                if name not in GATE_METRICS:
                    known = ", ".join(GATE_METRICS)
                    raise ValueError(f"{key}: no figure {name!r}; there are {known}")
        return self


class GateParams(CategoryGateParams):
    """What a challenger must reach to be promoted."""

    floors: dict[str, float] | None = Field(
        {"image_auroc": 0.7}, description="least figure on the test set by name, fractions"
    )
    synthetic_floors: dict[str, float] | None = Field(
        {"image_auroc": 0.7},
        description="the same on synthetic anomalies, where the test set has no defects",
    )
    margins: dict[str, float] | None = Field(
        {"image_auroc": 0.02, "pixel_auroc": 0.02},
        description="by how much a figure may be worse than the champion's, fractions",
    )
    max_false_alarm_rate: Fraction | None = Field(
        0.1, ge=0, le=1, description="share of held-out normal images called anomalous"
    )
    min_normals: int | None = Field(
        10, ge=1, description="held-out normal images needed to count alarms on"
    )
    max_seconds: float | None = Field(2.0, gt=0, description="median time an image, in seconds")
    max_slowdown: float | None = Field(
        1.5, gt=0, description="median time an image, as a multiple of the champion's"
    )
    confidence: Fraction = Field(0.95, gt=0, lt=1, description="of every interval")
    draws: int = Field(2000, ge=100, description="resamples of the test images")
    synthetic_per_image: int = Field(
        2, ge=1, description="synthetic anomalies per normal image, where there are no defects"
    )
    categories: dict[str, CategoryGateParams] = Field(
        {}, description="own limits by category; what is left out is as above"
    )

    def limits_of(self, category: str) -> CategoryGateParams:
        """Limits of a category: its own, completed by those for all."""
        own = self.categories.get(category, CategoryGateParams())
        merged = {
            key: getattr(self, key) if getattr(own, key) is None else getattr(own, key)
            for key in CategoryGateParams.model_fields
        }
        return CategoryGateParams.model_validate(merged)


class RetrainParams(Section):
    """New normal images, and what is done with them by itself."""

    inbox: str | None = Field(
        None, description="folder or s3://bucket/prefix that holds <category>/<image>; null: none"
    )
    cron: str = Field("*/15 * * * *", description="when to look into the inbox, UTC")
    min_new_images: int = Field(
        20, ge=1, description="new normal images of a category that start retraining"
    )
    max_wait_hours: float = Field(
        24.0, gt=0, description="hours that an image waits at most for retraining"
    )
    warm_start: Literal["champion", "scratch"] = Field(
        "champion", description="weights that retraining starts from"
    )
    policy: Literal["manual", "auto"] = Field(
        "manual", description="whether a person approves, or the gate's word suffices"
    )
    policies: dict[str, Literal["manual", "auto"]] = Field(
        {}, description="policy by category, where it differs"
    )
    approval_wait_hours: float = Field(
        168.0, gt=0, description="hours that a flow run waits for a person's form"
    )
    new_categories: bool = Field(
        True, description="whether images of an unknown category found it; if not they are held"
    )
    hold_anomalous: bool = Field(
        True, description="hold normal images that the champion calls anomalous, for review"
    )
    hold_foreign: bool = Field(
        True, description="hold images that look like another category, or a new one named like it"
    )
    near_duplicate_levels: float = Field(
        0.7, ge=0, description="mean grey difference, 0..255, below which images are the same"
    )
    settle_seconds: float = Field(
        10.0, ge=0, description="age of a file in an inbox folder before it counts as complete"
    )
    branch: str = Field("onenip/arrivals", description="Git branch that arrivals are committed to")
    git_remote: str | None = Field(
        "origin", description="Git remote that it is pushed to, where there is one; null: none"
    )

    def policy_of(self, category: str) -> Literal["manual", "auto"]:
        """Policy of a category."""
        return self.policies.get(category, self.policy)

    def require_inbox(self) -> str:
        """Address of the inbox.

        Raises:
            ParamsError: if there is none.
        """
        if self.inbox is None:
            message = "retrain.inbox: name the folder or s3://bucket/prefix where images arrive"
            raise ParamsError(message, key="retrain.inbox")
        return self.inbox


class DriftParams(Section):
    """When arriving normal images no longer look like those at approval."""

    cron: str = Field("0 * * * *", description="when to look, UTC")
    window: int = Field(200, ge=5, description="latest arrived images per category to look at")
    min_images: int = Field(20, ge=5, description="fewer images than this raise no alarm")
    max_alarm_share: Fraction = Field(
        0.2, ge=0, le=1, description="share of them that the champion may call anomalous"
    )
    max_score_distance: Fraction = Field(
        0.5, gt=0, le=1, description="Kolmogorov-Smirnov distance of image scores"
    )
    max_embedding_distance: float = Field(
        4.0, gt=0, description="distance from the prompts, as a multiple of that at approval"
    )
    retrain: bool = Field(False, description="whether drift starts retraining by itself")


class NotifyParams(Section):
    """Who is told when a person is needed."""

    webhook: str | None = Field(
        None, description="URL that gets a JSON POST; $NAME is taken from the environment"
    )
    registry_events: tuple[str, ...] = Field(
        (
            "model_version.created",
            "model_version_tag.set",
            "model_version_alias.created",
            "model_version_alias.deleted",
        ),
        description="what MLflow's server itself POSTs there, in its own words; [] for a chat room",
    )
    timeout_seconds: float = Field(10.0, gt=0, description="of one attempt to tell")

    @field_validator("registry_events")
    @classmethod
    def _know_events(cls, events: tuple[str, ...]) -> tuple[str, ...]:
        for name in events:
            if name not in REGISTRY_EVENTS:
                raise ValueError(f"no event {name!r}; there are {', '.join(REGISTRY_EVENTS)}")
        return events
