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


class ValidateParams(Section):
    """What a usable image is."""


class SynthesizeParams(Section):
    """How normal images are turned into anomalous ones."""

    per_image: int = Field(2, ge=1, description="synthetic anomalies stored per normal image")
    textures: str | None = Field(
        None, description="folder of texture photos; null: textures that onenip draws itself"
    )


class ModelParams(Section):
    """Architecture of the detector; a checkpoint is only good for the same."""


class TrainParams(Section):
    """The optimisation."""

    epochs: int = Field(40, ge=1, description="passes over the normal training images")
    max_steps: int | None = Field(
        None, ge=1, description="optimiser steps at most; null: epochs decide"
    )


class CalibrateParams(Section):
    """Prompts, thresholds and score scales, all chosen from training normals."""

    false_alarm_rate: Fraction = Field(
        0.02, gt=0, lt=1, description="target share of normal images called anomalous"
    )


class EvaluateParams(Section):
    """How the test set is scored and pictured."""

    resolution: Literal["native", "input"] = Field(
        "native",
        description="size at which pixels are compared: the image's own, or the model's input",
    )


class RegisterParams(Section):
    """Names in the model registry."""

    experiment: str = Field("onenip", description="MLflow experiment that runs are logged to")


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
