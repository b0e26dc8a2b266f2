"""Sections about operation: registration, the gate, retraining, drift, notices."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from onenip.errors import ParamsError
from onenip.params.reading import Section

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
    """The model registry."""

    experiment: str = Field("onenip", description="MLflow experiment of the runs")


class CategoryGateParams(Section):
    """Limits of the gate for one category; those left out are the general ones."""

    floors: dict[str, float] | None = Field(
        None, description="minimum figures on the test set, fractions"
    )
    synthetic_floors: dict[str, float] | None = Field(
        None,
        description="minimum figures on synthetic anomalies, where the test set has no defects",
    )
    margins: dict[str, float] | None = Field(
        None, description="maximum decrease of a figure from the champion's, fractions"
    )
    max_false_alarm_rate: float | None = Field(
        None, ge=0, le=1, description="maximum share of held-out normal images called anomalous"
    )
    false_alarm_margin: float | None = Field(
        None,
        ge=0,
        le=1,
        description="how far the upper end of that share's interval may lie above the maximum",
    )
    min_normals: int | None = Field(
        None, ge=1, description="minimum number of held-out normal images"
    )
    min_defects: int | None = Field(
        None,
        ge=1,
        description="minimum number of defective test images, or of images with synthetic anomalies",
    )
    max_seconds: float | None = Field(
        None, gt=0, description="maximum median time per image in seconds"
    )
    max_slowdown: float | None = Field(
        None, gt=0, description="maximum median time per image, as a multiple of the champion's"
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
    """Limits that a challenger must satisfy to be promoted."""

    floors: dict[str, float] | None = Field(
        {"image_auroc": 0.7}, description="minimum figures on the test set, fractions"
    )
    synthetic_floors: dict[str, float] | None = Field(
        {"image_auroc": 0.7},
        description="minimum figures on synthetic anomalies, where the test set has no defects",
    )
    margins: dict[str, float] | None = Field(
        {"image_auroc": 0.02, "pixel_auroc": 0.02, "recall": 0.05},
        description="maximum decrease of a figure from the champion's, fractions",
    )
    max_false_alarm_rate: float | None = Field(
        0.1, ge=0, le=1, description="maximum share of held-out normal images called anomalous"
    )
    false_alarm_margin: float | None = Field(
        0.15,
        ge=0,
        le=1,
        description="how far the upper end of that share's interval may lie above the maximum",
    )
    min_normals: int | None = Field(
        10, ge=1, description="minimum number of held-out normal images"
    )
    min_defects: int | None = Field(
        5,
        ge=1,
        description="minimum number of defective test images, or of images with synthetic anomalies",
    )
    max_seconds: float | None = Field(
        2.0, gt=0, description="maximum median time per image in seconds"
    )
    max_slowdown: float | None = Field(
        1.5, gt=0, description="maximum median time per image, as a multiple of the champion's"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="confidence level of the intervals")
    draws: int = Field(2000, ge=100, description="bootstrap resamples of the test images")
    synthetic_per_image: int = Field(
        2, ge=1, description="synthetic anomalies per normal image, where there are no defects"
    )
    categories: dict[str, CategoryGateParams] = Field(
        {}, description="limits by category; those left out are as above"
    )

    @model_validator(mode="after")
    def _have_limits(self) -> Self:
        for key in CategoryGateParams.model_fields:
            if getattr(self, key) is None:
                raise ValueError(f"{key}: null is no limit; write a value")
        return self

    def limits_of(self, category: str) -> CategoryGateParams:
        """Limits of a category: its own, completed by those for all."""
        own = self.categories.get(category, CategoryGateParams())
        merged = {
            key: getattr(self, key) if getattr(own, key) is None else getattr(own, key)
            for key in CategoryGateParams.model_fields
        }
        return CategoryGateParams.model_validate(merged)


class RetrainParams(Section):
    """Arriving normal images and retraining."""

    inbox: str | None = Field(
        None, description="folder or s3://bucket/prefix that holds <category>/<image>; null: none"
    )
    cron: str = Field("*/15 * * * *", description="schedule of looks into the inbox, UTC")
    min_new_images: int = Field(
        20,
        ge=1,
        description="minimum number of new normal images of a category that starts retraining",
    )
    max_wait_hours: float = Field(
        24.0, gt=0, description="maximum hours that an image waits for retraining"
    )
    warm_start: Literal["champion", "scratch"] = Field(
        "champion", description="initial weights of retraining"
    )
    policy: Literal["manual", "auto"] = Field(
        "manual", description="who approves a version: a person (manual), or the gate (auto)"
    )
    policies: dict[str, Literal["manual", "auto"]] = Field(
        {}, description="policy by category, where it differs"
    )
    approval_wait_hours: float = Field(
        168.0, gt=0, description="hours that a flow run waits for a person's form"
    )
    new_categories: bool = Field(
        True, description="create a category from images of an unknown one; false holds them"
    )
    hold_anomalous: bool = Field(
        True, description="hold normal images that the champion calls anomalous, for review"
    )
    hold_foreign: bool = Field(
        True,
        description="hold images that look like another category, and new categories named like one",
    )
    near_duplicate_levels: float = Field(
        0.7,
        ge=0,
        description="maximum difference, 0..255, of any 16-px block of near-duplicates, which are counted",
    )
    settle_seconds: float = Field(
        10.0,
        ge=0,
        description="age in seconds at which a file in an inbox folder counts as complete",
    )
    branch: str = Field("onenip/arrivals", description="Git branch that arrivals are committed to")
    push: bool = Field(
        False, description="share this branch through a Git remote: follow it there, and push it"
    )
    git_remote: str | None = Field(
        "origin", description="Git remote that this branch is shared through; null: none"
    )

    @property
    def remote(self) -> str | None:
        """Git remote that the branch is shared through, None unless a person switched that on."""
        return self.git_remote if self.push else None

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
    """Alarms when arriving normal images differ from those at approval."""

    cron: str = Field("0 * * * *", description="schedule, UTC")
    window: int = Field(200, ge=5, description="number of latest arrivals per category")
    min_images: int = Field(20, ge=5, description="minimum number of images for an alarm")
    max_alarm_share: float = Field(
        0.2, ge=0, le=1, description="maximum share of them that the champion calls anomalous"
    )
    max_score_distance: float = Field(
        0.5, gt=0, le=1, description="maximum Kolmogorov-Smirnov distance of the image scores"
    )
    max_embedding_distance: float = Field(
        4.0,
        gt=0,
        description="maximum distance from the prompts, as a multiple of that at approval",
    )
    retrain: bool = Field(False, description="start retraining on drift")


class ReviewParams(Section):
    """The review queue, which holds copies of images until they are decided on."""

    answers: str | None = Field(
        None,
        description="folder or s3:// address of the answers of `serve --recent`; null: artifacts/recent",
    )
    days: float = Field(90.0, gt=0, description="maximum days that an image waits for a reviewer")
    gigabytes: float = Field(
        5.0, gt=0, description="room for its images; the least helpful go first"
    )


class NotifyParams(Section):
    """Notices to people."""

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
        description="events that MLflow's server POSTs there in its own format; [] for a chat room",
    )
    addresses: tuple[str, ...] = Field(
        (),
        description="addresses of the package apprise, such as mailto:// or msteams://; $NAME as above",
    )
    repeat_hours: float = Field(
        1.0, ge=0, description="hours in which the same notice is not sent again"
    )
    timeout_seconds: float = Field(10.0, gt=0, description="timeout of one attempt in seconds")

    @field_validator("registry_events")
    @classmethod
    def _know_events(cls, events: tuple[str, ...]) -> tuple[str, ...]:
        for name in events:
            if name not in REGISTRY_EVENTS:
                raise ValueError(f"no event {name!r}; there are {', '.join(REGISTRY_EVENTS)}")
        return events
