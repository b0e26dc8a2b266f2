"""Sections about the detector: architecture, training, calibration, evaluation."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from onenip.params.section import Fraction, Section


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
    batch_size: int = Field(8, ge=1, description="normal images a batch, on each device")
    accumulate_steps: int = Field(
        1, ge=1, description="batches of each device that make one optimiser step"
    )
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
    ema_decay: Fraction = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the running average of the weights that a step keeps; 0: the last weights",
    )
    selection_trials: int = Field(
        10,
        ge=0,
        description="times that weights are tried on held-out normals and synthetic anomalies, the best "
        "being kept; 0: the last are",
    )
    jitter_scale: float = Field(20.0, ge=0, description="feature jitter")
    jitter_probability: Fraction = Field(1.0, ge=0, le=1, description="of jitter in a step")
    feature_weight: float = Field(1.0, ge=0, description="weight of the feature loss")
    dice_weight: float = Field(0.5, ge=0, description="weight of the Dice loss of the refined map")
    dice_overlap: float = Field(
        2.0,
        ge=1,
        le=2,
        description="weight of the overlap in Dice: 2, or 1 as in the authors' code",
    )
    cross_entropy_weight: float = Field(1.0, ge=0, description="weight of the map's cross entropy")
    prompt_choice: Literal["random", "nearest"] = Field(
        "random", description="which normal image of the category prompts a training image"
    )
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = Field(
        "auto", description="auto: mixed on CUDA, 32 bits on the CPU"
    )
    devices: int | Literal["auto"] = Field(
        "auto",
        description="processes that train together on a host, one a GPU; auto: all GPUs, or one on the CPU",
    )
    hosts: int = Field(1, ge=1, description="hosts that train together, each started by torchrun")
    deterministic: bool = Field(
        True, description="the same bits in each run, where the device can; false: faster on a GPU"
    )
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
