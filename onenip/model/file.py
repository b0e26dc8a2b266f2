"""The model on disk: `detector.json`, readable by people, and `model.safetensors`.

Together they rebuild a detector with nothing else at hand. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from onenip.errors import CheckpointError
from onenip.params import CalibrateParams, ModelParams, Section

FORMAT_VERSION = 1
SPEC_FILE = "detector.json"
TENSORS_FILE = "model.safetensors"


class MapScale(Section):
    """Mean and spread of one kind of map over normal images."""

    mean: float = Field(description="mean over pixels")
    std: float = Field(gt=0, description="standard deviation over pixels")


class CategorySpec(Section):
    """Calibration of one category: all but its tensors."""

    image_threshold: float = Field(description="an image scoring above it is anomalous")
    pixel_threshold: float = Field(description="a pixel above it is defective")
    scales: dict[str, MapScale] = Field(description="mean and spread per kind of map")
    fusion_constant: float = Field(description="the paper's (max + min) / 2 of restoration maps")
    normal_scores: list[float] = Field(
        description="image scores of the normals that the thresholds come from"
    )
    synthetic_scores: list[float] = Field(description="image scores of synthetic anomalies")
    prompt_names: list[str] = Field(description="images chosen as prompts, of the data set")
    prompt_scores: list[float] = Field(description="image scores of the prompts, to verify by")
    calibrated_on: str = Field(description="which normals: calibration, fit, or given")
    is_provisional: bool = Field(description="whether the category was added without training")


class DetectorSpec(Section):
    """The content of `detector.json`."""

    format_version: int = Field(FORMAT_VERSION, description="of this file and of the tensors")
    model: ModelParams = Field(description="the architecture")
    calibrate: CalibrateParams = Field(description="how maps are fused and pooled")
    categories: dict[str, CategorySpec] = Field(description="by name")
    provenance: dict[str, Any] = Field(
        description="data version, code commit, params, seed, calibration images"
    )


def write_model(folder: Path, spec: DetectorSpec, tensors: dict[str, Tensor]) -> str:
    """Write a model's two files, whole or not at all, and give their digest.

    Args:
        folder: made if need be.
        spec: the description.
        tensors: on the CPU, by name.

    Returns:
        The digest, 64 hex digits.

    Raises:
        CheckpointError: if the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ordered = {key: tensors[key].detach().cpu().contiguous() for key in sorted(tensors)}
    partial = folder / f".{TENSORS_FILE}.partial"
    try:
        save_file(ordered, partial)
    except SafetensorError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"{partial}: {error}") from error
    os.replace(partial, folder / TENSORS_FILE)
    text = json.dumps(spec.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
    partial = folder / f".{SPEC_FILE}.partial"
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, folder / SPEC_FILE)
    return hash_model(folder)


def read_model(folder: Path) -> tuple[DetectorSpec, dict[str, Tensor]]:
    """Description and tensors of a model folder.

    Raises:
        CheckpointError: if a file is missing, damaged, of another program or of a newer format.
    """
    return read_spec(folder), read_tensors(folder / TENSORS_FILE)


def read_spec(folder: Path) -> DetectorSpec:
    """Description of a model folder, without its tensors.

    Raises:
        CheckpointError: as `read_model`.
    """
    path = folder / SPEC_FILE
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no model here ({SPEC_FILE} is missing)") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {version}, but this onenip reads version {FORMAT_VERSION}"
        )
    try:
        return DetectorSpec.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{path}: {key}: {first['msg']}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error


def hash_model(folder: Path) -> str:
    """sha256 over the description and the tensors of a model folder, as 64 hex digits."""
    digest = hashlib.sha256()
    for name in (SPEC_FILE, TENSORS_FILE):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
