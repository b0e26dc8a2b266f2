"""Sections about the detector: architecture, training, calibration, evaluation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from onenip.params.reading import Section


class ModelParams(Section):
    """Architecture of the detector; a checkpoint is only good for the same."""

    backbone: str = Field(
        "tf_efficientnet_lite2", description="name of a timm model with feature maps"
    )
    weights: str = Field(
        "package",
        description="backbone weights: `package` (ImageNet, from an installed package), `pretrained` "
        "(from timm's model hub), `random`, or the path of a state dict",
    )
    levels: tuple[int, ...] = Field(
        (0, 1, 2, 3),
        description="feature levels of the timm model, or blocks of a ViT; []: stride 16 and finer",
    )
    input_size: tuple[int, int] = Field(
        (224, 224), description="height and width of the network's input in px"
    )
    zoom: int = Field(
        2,
        ge=1,
        le=4,
        description="a second memory and the refiner see tokens at this multiple of input_size, too, for "
        "categories whose photographs have the pixels; 1: none; the refiner `paper`, backbones that take "
        "images of one size and models without a memory have none",
    )
    padding_size: int | None = Field(
        None,
        ge=32,
        description="input side in px whose padding is used for every input size; null: none",
    )
    pooling: Literal["bilinear", "area"] = Field(
        "area",
        description="how finer levels are resized to the coarsest grid: as in the paper, or by averaging",
    )
    standardize: bool = Field(
        True, description="scale each feature channel to zero mean and unit variance"
    )
    width: int = Field(128, ge=2, le=1024, description="transformer width D")
    heads: int = Field(4, ge=1, le=1024, description="attention heads")
    encoder_layers: int = Field(2, ge=1, le=24, description="encoder layers")
    decoder_layers: int = Field(2, ge=1, le=24, description="bidirectional decoder layers")
    feedforward: int = Field(
        512, ge=1, le=4096, description="hidden width of the feed-forward layers"
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout probability in training")
    neighbor_size: int = Field(
        7, ge=0, le=255, description="side in tokens of the masked neighbourhood, odd; 0: no mask"
    )
    refiner: Literal["paper", "evidence"] = Field(
        "evidence",
        description="network that refines the map: as in the paper, or one with more inputs",
    )
    refiner_width: int = Field(96, ge=2, le=1024, description="channels inside the refiner, even")
    refiner_dropout: float = Field(
        0.3, ge=0, lt=1, description="share of evidence channels dropped in a training step"
    )
    evidence: tuple[Literal["restoration", "distance", "residual", "features"], ...] = Field(
        ("restoration", "distance", "residual", "features"),
        description="inputs of the refiner `evidence`",
    )
    memory_tokens: int = Field(
        2048, ge=0, le=200_000, description="normal tokens kept per category; 0: no memory"
    )
    memory_window: int = Field(
        3, ge=1, le=31, description="side in tokens of the averaging window, odd"
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.width % self.heads or self.width % 2:
            raise ValueError("model.width must be even and divisible by model.heads")
        if self.neighbor_size and self.neighbor_size % 2 == 0:
            raise ValueError("model.neighbor_size must be odd, or 0")
        if self.memory_window % 2 == 0 or self.refiner_width % 2:
            raise ValueError("model.memory_window must be odd and model.refiner_width even")
        if min(self.input_size) < 32 or max(self.input_size) * self.zoom > 1024:
            raise ValueError("model.input_size must be 32 to 1024 px a side, zoomed too")
        if not self.evidence or len(set(self.evidence)) < len(self.evidence):
            raise ValueError("model.evidence needs at least one kind, each once")
        if self.refiner == "evidence" and not self.memory_tokens:
            lost = {"distance", "residual"} & set(self.evidence)
            if lost:
                raise ValueError(f"model.evidence {sorted(lost)} needs model.memory_tokens above 0")
        return self

    def zoomed_size(self, zoom: int) -> tuple[int, int]:
        """(height, width) in px at which images come in at a zoom."""
        return zoom * self.input_size[0], zoom * self.input_size[1]


class TrainParams(Section):
    """Training: schedule, losses, devices."""

    epochs: int = Field(36, ge=1, description="passes over the normal training images")
    max_steps: int | None = Field(
        None, ge=1, description="maximum number of optimiser steps; null: as `epochs` gives"
    )
    batch_size: int = Field(8, ge=1, description="normal images per batch and device")
    accumulate_steps: int = Field(1, ge=1, description="batches per device and optimiser step")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay of AdamW")
    schedule: Literal["step", "cosine"] = Field(
        "cosine",
        description="learning rate schedule: one step down as in the paper, or warm-up and cosine",
    )
    step_epoch: int = Field(
        800, ge=1, description="epoch after which `step` divides the learning rate by 10"
    )
    warmup_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of all steps that `cosine` warms up"
    )
    gradient_clip: float = Field(1.0, gt=0, description="maximum gradient norm")
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of the exponential moving average of the weights; 0: no average",
    )
    selection_trials: int = Field(
        10,
        ge=0,
        description="number of times that the weights are scored on held-out normals and synthetic "
        "anomalies; the best are kept; 0: the last are kept",
    )
    jitter_scale: float = Field(20.0, ge=0, description="scale of the feature jitter")
    jitter_probability: float = Field(
        1.0, ge=0, le=1, description="probability of feature jitter in a step"
    )
    feature_weight: float = Field(1.0, ge=0, description="weight of the feature loss")
    dice_weight: float = Field(0.5, ge=0, description="weight of the Dice loss of the refined map")
    dice_overlap: float = Field(
        2.0,
        ge=1,
        le=2,
        description="weight of the overlap in the Dice loss: 2, or 1 as in the authors' code",
    )
    cross_entropy_weight: float = Field(
        1.0, ge=0, description="weight of the cross entropy of the refined map"
    )
    real_defects: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of confirmed defects, those with a mask, that `onenip review apply` puts beside "
        "the training images: the refiner learns from them, too, and no test sees them; 0: all are test "
        "images, and none is learnt from",
    )
    prompt_choice: Literal["random", "nearest"] = Field(
        "random", description="choice of the normal image that prompts a training image"
    )
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = Field(
        "auto", description="floating-point precision; auto: mixed on CUDA, 32 bits on the CPU"
    )
    devices: int | Literal["auto"] = Field(
        "auto",
        description="training processes per host, one per GPU; auto: all GPUs, or one on the CPU",
    )
    hosts: int = Field(1, ge=1, description="number of training hosts, each started by torchrun")
    deterministic: bool = Field(
        True,
        description="give the same bits in each run, where the device can; false is faster on a GPU",
    )
    checkpoint_seconds: float = Field(
        60.0, gt=0, description="seconds between checkpoints, from which a killed training resumes"
    )
    log_steps: int = Field(10, ge=1, description="steps between logged losses")
    warm_start: str | None = Field(
        None, description="model folder with the initial weights; null: from scratch"
    )


class CalibrateParams(Section):
    """Prompts, thresholds and score scales, chosen on normal training images alone."""

    prompts: int = Field(
        4, ge=1, description="normal images stored per category as prompts; the nearest one is used"
    )
    fusion: Literal["paper", "standardized"] = Field(
        "standardized",
        description="how the maps are combined: as in the paper with a stored constant, or each in "
        "units of its spread over normal images",
    )
    fusion_weights: dict[
        Literal["restoration", "distance", "refined", "detail", "refined_detail"],
        Annotated[float, Field(ge=0)],
    ] = Field(
        {"restoration": 0.0, "distance": 1.0, "refined": 1.0, "detail": 1.0, "refined_detail": 1.0},
        description="weights of the maps for `standardized`",
    )
    pooling: Literal["peak", "top"] = Field(
        "peak",
        description="image score: `peak`, the maximum of the map averaged over a window, or `top`, the "
        "mean of its highest pixels",
    )
    pooling_px: int = Field(8, ge=1, description="side in px of the window of `peak`")
    pooling_share: float = Field(
        0.005, gt=0, le=1, description="share of the map's pixels that `top` averages"
    )
    false_alarm_rate: float = Field(
        0.05, gt=0, lt=1, description="wanted share of normal images called anomalous"
    )
    min_recall: float = Field(
        0.8,
        ge=0,
        le=1,
        description="share of synthetic anomalies to find, at the cost of further false alarms",
    )
    max_false_alarm_rate: float = Field(
        0.1, gt=0, lt=1, description="share of false alarms that `min_recall` may cost at most"
    )
    review_rate: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of normal images to review or reject, above false_alarm_rate; null: no verdict "
        "`review`",
    )
    min_normals: int = Field(
        10,
        ge=1,
        description="normal images that a category added without training needs for a verdict; with fewer "
        "it is `unsure`",
    )
    pixel_false_alarm_rate: float = Field(
        0.001, gt=0, lt=1, description="target share of normal images' pixels called defective"
    )

    @model_validator(mode="after")
    def _order_rates(self) -> Self:
        if self.review_rate is not None and self.review_rate <= self.false_alarm_rate:
            raise ValueError("calibrate.review_rate must be above calibrate.false_alarm_rate")
        return self


class EvaluateParams(Section):
    """Evaluation of the test set."""

    resolution: Literal["native", "input"] = Field(
        "native",
        description="size at which pixels are compared: that of the image, or of the model's input",
    )
    pictures: int = Field(
        4,
        ge=0,
        description="pictures per category of each kind: worst misses, worst false alarms, random",
    )
    bootstrap_draws: int = Field(
        1000, ge=100, description="bootstrap resamples of the test images per interval"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="confidence level of the intervals")
