"""Typed, frozen view of `params.yaml`: one class per top-level key, unknown keys are errors.

Read once, at the edge (`Params.load`); nothing below the stages sees more than its own section.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from onenip.errors import ParamsError

DEFAULT_PATH = Path("params.yaml")

Fraction = float
SYNTHETIC_KINDS = frozenset(
    {"cutpaste", "scar", "perlin", "misplaced", "stain", "scratch", "erased"}
)
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


class Section(BaseModel):
    """Base of every section: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


class DataParams(Section):
    """Where the images are and how normal ones are divided."""

    root: str = Field("data", description="folder in MVTec layout, versioned by data.dvc")
    calibration_fraction: Fraction = Field(
        0.15,
        ge=0,
        lt=1,
        description="share of normal training images kept for thresholds and scales, by hash",
    )
    holdout_fraction: Fraction = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of normal training images that nothing is fitted to, by hash",
    )

    @model_validator(mode="after")
    def _leave_images_to_fit(self) -> Self:
        if self.calibration_fraction + self.holdout_fraction >= 1:
            raise ValueError("data.calibration_fraction + data.holdout_fraction must be below 1")
        return self


class DownloadParams(Section):
    """Limits of what `onenip download` accepts."""

    workers: int = Field(8, ge=1, description="parallel transfers")
    max_unpacked_gib: float = Field(
        100.0, gt=0, description="GiB that an archive may unpack to, at most"
    )
    max_unpacked_ratio: float = Field(
        200.0, gt=1, description="times its size that an archive may unpack to, from 64 MiB on"
    )
    textures: str = Field("textures", description="folder that texture sources (dtd) go to")
    urls: dict[str, str] = Field(
        {}, description="other addresses of mvtec, visa, btad, dtd, magnetic-tile, such as mirrors"
    )


class ValidateParams(Section):
    """What a usable image is."""

    min_side_px: int = Field(16, ge=1, description="shortest side of a usable image in px")
    max_pixels: int = Field(
        100_000_000, ge=1, description="height times width of the largest image that is decoded"
    )
    min_contrast: float = Field(
        0.004, ge=0, le=1, description="least standard deviation of grey values, 0..1"
    )
    brightness_range: tuple[float, float] = Field(
        (0.004, 0.996), description="mean grey value of an image that is not black or white, 0..1"
    )
    max_deviation: float = Field(
        8.0,
        gt=0,
        description="usual range of size, aspect, brightness and sharpness, in robust deviations",
    )
    near_duplicate_bits: int = Field(
        2,
        ge=0,
        le=64,
        description="bits of 64 in which perceptual hashes of near-duplicates differ",
    )
    min_train_images: int = Field(
        8, ge=1, description="normal training images that a category should have"
    )
    severities: dict[str, Literal["error", "quarantine", "warning", "off"]] = Field(
        {}, description="rules whose severity differs from the built-in one, by name of the rule"
    )


class SynthesizeParams(Section):
    """How normal images are turned into anomalous ones; lengths in px are for a side of 224 px."""

    per_image: int = Field(2, ge=1, description="synthetic anomalies stored per normal image")
    kinds: dict[str, float] = Field(
        {
            "cutpaste": 0.1,
            "scar": 0.1,
            "perlin": 0.2,
            "misplaced": 0.2,
            "stain": 0.15,
            "scratch": 0.15,
            "erased": 0.1,
        },
        description="kinds of anomaly and their shares, which need not add up to 1",
    )
    textures: str | None = Field(
        None, description="folder of texture photos; null: textures that onenip draws itself"
    )
    foreground_only: bool = Field(
        True, description="keep anomalies off a plain background, where one can be told"
    )
    mask_visible_only: bool = Field(
        True, description="mask only what visibly changed, not all that was pasted"
    )
    grey_stays_grey: bool = Field(
        True, description="give grey images grey anomalies, as a grey camera would"
    )
    min_change: int = Field(8, ge=1, le=255, description="levels by which a pixel visibly changes")
    min_area_px: int = Field(12, ge=1, description="px that must visibly change, else redrawn")
    colour_jitter: float = Field(
        0.4, ge=0, le=1, description="brightness, contrast and saturation of a pasted patch"
    )
    hue_jitter: float = Field(0.1, ge=0, le=0.5, description="hue of a pasted patch, in turns")
    cutpaste_area_fraction: tuple[float, float] = Field((0.02, 0.15), description="of the image")
    cutpaste_aspect: tuple[float, float] = Field(
        (0.3, 3.3), description="width over height: first..1 as often as 1..second"
    )
    scar_width_px: tuple[float, float] = Field((2.0, 16.0), description="breadth of a scar in px")
    scar_length_px: tuple[float, float] = Field((10.0, 25.0), description="length of a scar in px")
    scar_angle_degrees: tuple[float, float] = Field((-45.0, 45.0), description="turn of a scar")
    perlin_period_powers: tuple[int, int] = Field(
        (1, 5), description="noise periods per axis, as powers of 2"
    )
    perlin_angle_degrees: tuple[float, float] = Field((-5.0, 5.0), description="turn of the noise")
    perlin_threshold: float = Field(0.5, gt=-1, lt=1, description="noise above it is anomalous")
    perlin_image_share: tuple[float, float] = Field(
        (0.0, 0.8), description="share of the image that shines through the texture"
    )
    blob_area_fraction: tuple[float, float] = Field(
        (0.0008, 0.06), description="area of irregular spots, of the image"
    )
    shade_levels: tuple[float, float] = Field(
        (12.0, 120.0), description="levels by which stains and scratches darken or lighten"
    )
    scratch_length_fraction: tuple[float, float] = Field(
        (0.05, 0.7), description="length of a scratch, of the image's shorter side"
    )
    scratch_width_px: tuple[float, float] = Field((1.0, 5.0), description="breadth of a scratch")

    @model_validator(mode="after")
    def _order_ranges(self) -> Self:
        for key, value in self:
            if isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError(f"synthesize.{key}: the first number is above the second")
        unknown = set(self.kinds) - SYNTHETIC_KINDS
        if (
            unknown
            or not self.kinds
            or min(self.kinds.values()) < 0
            or not any(self.kinds.values())
        ):
            known = ", ".join(sorted(SYNTHETIC_KINDS))
            raise ValueError(f"synthesize.kinds: shares above 0 of {known}; got {self.kinds}")
        return self


class ModelParams(Section):
    """Architecture of the detector; a checkpoint is only good for the same."""

    backbone: str = Field("tf_efficientnet_lite2", description="a timm model with feature maps")
    weights: str = Field(
        "package",
        description="of the backbone: `package` (ImageNet, from an installed package), `pretrained` "
        "(timm's, from a model hub), `random`, or the path of a state dict",
    )
    levels: tuple[int, ...] = Field(
        (0, 1, 2, 3),
        description="timm's feature levels, or blocks of a ViT; []: stride 16 and finer",
    )
    input_size: tuple[int, int] = Field((224, 224), description="height and width in px")
    padding_size: int | None = Field(
        None,
        ge=32,
        description="input side in px whose padding is kept for every input; null: none",
    )
    pooling: Literal["bilinear", "area"] = Field(
        "area", description="how finer levels reach the coarsest grid: the paper's, or averaged"
    )
    standardize: bool = Field(True, description="zero mean, unit variance per feature channel")
    width: int = Field(128, ge=2, description="transformer width D")
    heads: int = Field(4, ge=1, description="attention heads")
    encoder_layers: int = Field(2, ge=1, description="encoder layers")
    decoder_layers: int = Field(2, ge=1, description="bidirectional decoder layers")
    feedforward: int = Field(512, ge=1, description="hidden width of the feed-forward parts")
    dropout: Fraction = Field(0.1, ge=0, lt=1, description="dropout probability in training")
    neighbor_size: int = Field(
        7, ge=0, description="side in tokens of the masked neighbourhood, odd; 0: no mask"
    )
    refiner: Literal["paper", "evidence"] = Field(
        "evidence", description="what sharpens the map: the paper's refiner, or one that sees more"
    )
    refiner_width: int = Field(96, ge=2, description="channels inside the refiner, even")
    refiner_dropout: Fraction = Field(
        0.3, ge=0, lt=1, description="share of evidence channels hidden in a training step"
    )
    evidence: tuple[Literal["restoration", "distance", "residual", "features"], ...] = Field(
        ("restoration", "distance", "residual", "features"),
        description="what the refiner `evidence` sees",
    )
    memory_tokens: int = Field(
        2048, ge=0, description="normal tokens kept per category; 0: no memory"
    )
    memory_window: int = Field(3, ge=1, description="side in tokens that are averaged, odd")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.width % self.heads or self.width % 2:
            raise ValueError("model.width must be even and divisible by model.heads")
        if self.neighbor_size and self.neighbor_size % 2 == 0:
            raise ValueError("model.neighbor_size must be odd, or 0")
        if self.memory_window % 2 == 0 or self.refiner_width % 2:
            raise ValueError("model.memory_window must be odd and model.refiner_width even")
        if min(self.input_size) < 32:
            raise ValueError("model.input_size must be at least 32 px a side")
        if not self.evidence or len(set(self.evidence)) < len(self.evidence):
            raise ValueError("model.evidence needs at least one kind, each once")
        if self.refiner == "evidence" and not self.memory_tokens:
            lost = {"distance", "residual"} & set(self.evidence)
            if lost:
                raise ValueError(f"model.evidence {sorted(lost)} needs model.memory_tokens above 0")
        return self


class TrainParams(Section):
    """The optimisation."""

    epochs: int = Field(30, ge=1, description="passes over the normal training images")
    max_steps: int | None = Field(
        None, ge=1, description="optimiser steps at most; null: epochs decide"
    )
    batch_size: int = Field(8, ge=1, description="normal images a step, on each device")
    learning_rate: float = Field(1e-3, gt=0, description="of AdamW, at its highest")
    weight_decay: float = Field(1e-4, ge=0, description="of AdamW")
    schedule: Literal["step", "cosine"] = Field(
        "cosine", description="learning rate: the paper's one step down, or warm-up and cosine"
    )
    step_epoch: int = Field(800, ge=1, description="epoch of the step down by 10, for `step`")
    warmup_fraction: Fraction = Field(
        0.1, ge=0, lt=1, description="share of all steps, for `cosine`"
    )
    gradient_clip: float = Field(1.0, gt=0, description="largest gradient norm")
    jitter_scale: float = Field(20.0, ge=0, description="feature jitter")
    jitter_probability: Fraction = Field(1.0, ge=0, le=1, description="of jitter in a step")
    feature_weight: float = Field(1.0, ge=0, description="weight of the feature loss")
    dice_weight: float = Field(0.5, ge=0, description="weight of the Dice loss of the refined map")
    dice_overlap: float = Field(
        2.0, ge=1, le=2, description="weight of the overlap in Dice: 2, or the reference's 1"
    )
    cross_entropy_weight: float = Field(1.0, ge=0, description="weight of the map's cross entropy")
    prompt_choice: Literal["random", "nearest"] = Field(
        "random", description="which normal image of the category prompts a training image"
    )
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = Field(
        "auto", description="auto: mixed on CUDA, 32 bits on the CPU"
    )
    devices: int | Literal["auto"] = Field("auto", description="GPUs to train on; the CPU counts 1")
    checkpoint_seconds: float = Field(
        60.0, gt=0, description="time between checkpoints that a killed training resumes from"
    )
    log_steps: int = Field(10, ge=1, description="steps between logged losses")
    warm_start: str | None = Field(
        None, description="model folder whose weights training starts from; null: from scratch"
    )


class CalibrateParams(Section):
    """Prompts, thresholds and score scales, all chosen from training normals."""

    prompts: int = Field(
        4, ge=1, description="normal images kept per category as prompts; the nearest is used"
    )
    fusion: Literal["paper", "standardized"] = Field(
        "standardized",
        description="how maps become one: the paper's rule with a stored constant, or each in units "
        "of its spread over normal images",
    )
    fusion_weights: dict[Literal["restoration", "distance", "refined"], float] = Field(
        {"restoration": 0.0, "distance": 1.0, "refined": 1.0},
        description="weights of the maps, for `standardized`",
    )
    pooling_px: int = Field(
        16,
        ge=1,
        description="side in px that a map is averaged over before its maximum is the score",
    )
    false_alarm_rate: Fraction = Field(
        0.02, gt=0, lt=1, description="target share of normal images called anomalous"
    )
    pixel_false_alarm_rate: Fraction = Field(
        0.001, gt=0, lt=1, description="target share of normal images' pixels called defective"
    )


class EvaluateParams(Section):
    """How the test set is scored and pictured."""

    resolution: Literal["native", "input"] = Field(
        "native",
        description="size at which pixels are compared: the image's own, or the model's input",
    )
    pictures: int = Field(
        4, ge=0, description="pictures per category: worst misses, worst false alarms, sample each"
    )
    bootstrap_draws: int = Field(
        1000, ge=100, description="resamples of the test images behind each interval"
    )
    confidence: Fraction = Field(
        0.95, gt=0, lt=1, description="chance that an interval holds the true figure"
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
        False, description="whether images of an unknown category found it; if not they are held"
    )
    hold_anomalous: bool = Field(
        True, description="hold normal images that the champion calls anomalous, for review"
    )
    hold_foreign: bool = Field(
        True, description="hold images that look like another category, for review"
    )
    near_duplicate_levels: float = Field(
        0.7, ge=0, description="mean grey difference, 0..255, below which images are the same"
    )
    settle_seconds: float = Field(
        10.0, ge=0, description="age of a file in an inbox folder before it counts as complete"
    )
    branch: str = Field("onenip/arrivals", description="Git branch that arrivals are committed to")

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
    timeout_seconds: float = Field(10.0, gt=0, description="of one attempt to tell")


class Params(Section):
    """All of `params.yaml`.

    Attributes are named as the keys of the file, but for `validate`, which pydantic reserves and which is
    `validation` here.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_default=True, populate_by_name=False
    )

    seed: int = Field(0, ge=0, description="root of every random choice")
    data: DataParams = DataParams()
    download: DownloadParams = DownloadParams()
    validation: ValidateParams = Field(ValidateParams(), alias="validate")
    synthesize: SynthesizeParams = SynthesizeParams()
    model: ModelParams = ModelParams()
    train: TrainParams = TrainParams()
    calibrate: CalibrateParams = CalibrateParams()
    evaluate: EvaluateParams = EvaluateParams()
    register_: RegisterParams = Field(RegisterParams(), alias="register")
    gate: GateParams = GateParams()
    retrain: RetrainParams = RetrainParams()
    drift: DriftParams = DriftParams()
    notify: NotifyParams = NotifyParams()

    @classmethod
    def load(cls, path: Path | str = DEFAULT_PATH) -> Self:
        """Params of a YAML file.

        Raises:
            ParamsError: if the file is missing, is no YAML, or has an unknown, missing or wrongly typed key;
                the message names the key.
        """
        return cls.parse(read_yaml(Path(path)), origin=str(path))

    @classmethod
    def parse(cls, values: dict[str, Any], *, origin: str = "params") -> Self:
        """Params from plain values, as YAML or JSON would give them; `origin` is named in errors."""
        try:
            # JSON, because strict mode takes a list for a tuple only from there
            return cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            raise to_params_error(error, origin=origin) from error

    def dump(self) -> dict[str, Any]:
        """Plain values with the file's own keys; `Params.parse` of them gives equal params."""
        return self.model_dump(mode="json", by_alias=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """Mapping in a YAML 1.2 file (`1e-4` is a number there, as DVC reads it).

    Raises:
        ParamsError: if the file is missing or holds no mapping.
    """
    try:
        values = YAML(typ="safe", pure=True).load(io.StringIO(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ParamsError(f"{path}: no such params file") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ParamsError(f"{path}: expected keys and values")
    return values


def to_params_error(error: ValidationError, *, origin: str) -> ParamsError:
    """One readable error that names every offending key of a failed validation."""
    problems = []
    for detail in error.errors():
        key = ".".join(str(part) for part in detail["loc"])
        message = "unknown key" if detail["type"] == "extra_forbidden" else detail["msg"]
        problems.append((key, f"{key}: {message}" if key else message))
    text = "; ".join(problem for _, problem in problems)
    return ParamsError(f"{origin}: {text}", key=problems[0][0])
