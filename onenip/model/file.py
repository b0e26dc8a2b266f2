"""The model on disk: `detector.json`, readable by people, and `model.safetensors`.

Together they rebuild a detector with nothing else at hand. Nothing is ever unpickled. `detector.json`
holds the sha256 of the tensors and a seal over itself, so that every changed bit of either is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from onenip.errors import CheckpointError
from onenip.folders import replace_folder
from onenip.images import hash_file
from onenip.params import CalibrateParams, ModelParams, Section

FORMAT_VERSION = 2  # 1 had no seal and no operating points, and is still read
SPEC_FILE = "detector.json"
TENSORS_FILE = "model.safetensors"

_NO_SEAL = "0" * 64


class MapScale(Section):
    """Mean and spread of one kind of map over normal images."""

    mean: float = Field(description="mean over pixels")
    std: float = Field(ge=1e-6, description="standard deviation over pixels")


class OperatingPoint(Section):
    """A threshold and what it promises."""

    threshold: float = Field(description="an image scoring above it is anomalous")
    false_alarm_rate: float = Field(description="expected share of normal images above it")
    false_alarm_rate_low: float = Field(description="lower end of its 95 % interval")
    false_alarm_rate_high: float = Field(description="upper end of its 95 % interval")
    synthetic_recall: float | None = Field(
        description="share of synthetic anomalies above it; null without any"
    )


class CategoryMeasurements(Section):
    """What the calibration images of a category showed."""

    scales: dict[str, MapScale] = Field(description="mean and spread per kind of map")
    fusion_constant: float = Field(description="the paper's (max + min) / 2 of restoration maps")
    pixel_threshold: float = Field(description="a pixel above it is defective")
    normal_names: list[str] = Field(
        description="normal images of the scores, held-out ones first, as the data set names them"
    )
    held_out_scores: list[float] = Field(
        description="image scores of normals that nothing was fitted to"
    )
    fitted_scores: list[float] = Field(
        description="image scores of normals that training has seen, without their own memory tokens"
    )
    synthetic_scores: list[float] = Field(description="image scores of synthetic anomalies")
    prompt_names: list[str] = Field(description="images chosen as prompts, of the data set")
    prompt_scores: list[float] = Field(description="image scores of the prompts, to verify by")
    zoom: int = Field(
        1, ge=1, description="multiple of model.input_size at which its details are looked at"
    )
    is_provisional: bool = Field(description="whether the category was added without training")
    sample_range: tuple[float, float] | None = Field(
        None,
        description="black and white of samples of more than 8 bits; null: 16 bits and floats of 0..1 are "
        "read over all of these, others refused",
    )


class CategorySpec(CategoryMeasurements):
    """Calibration of one category: all but its tensors."""

    image_threshold: float = Field(description="an image scoring above it is anomalous")
    review_threshold: float | None = Field(
        description="an image scoring above it, but not anomalous, is to be reviewed; null: none is"
    )
    min_normals: int = Field(description="normals that a verdict needs; with fewer it is `unsure`")
    operating_point: OperatingPoint = Field(description="what the image threshold promises")
    curve: list[OperatingPoint] = Field(description="what other thresholds would promise")
    normal_scores: list[float] = Field(
        description="image scores of normals that the thresholds come from: those of fitted ones moved "
        "to where held-out ones lie"
    )
    outliers: list[str] = Field(
        description="normals that score far above the others, to be reviewed"
    )
    warnings: list[str] = Field(description="what to know before relying on the threshold")

    @property
    def normals_needed(self) -> int:
        """Further normal images that a verdict needs; 0 where there are enough."""
        return max(self.min_normals - len(self.normal_names), 0)


class DetectorSpec(Section):
    """The content of `detector.json`."""

    format_version: int = Field(FORMAT_VERSION, description="of this file and of the tensors")
    model: ModelParams = Field(description="the architecture")
    calibrate: CalibrateParams = Field(description="how maps are fused and pooled")
    categories: dict[str, CategorySpec] = Field(description="by name")
    provenance: dict[str, Any] = Field(
        description="data version, code commit, params, seed, calibration images"
    )

    @model_validator(mode="after")
    def _check_scales(self) -> Self:
        """Each kind of map that is drawn and weighs something has a scale in every category."""
        if self.calibrate.fusion == "paper":
            return self
        drawn = {"restoration", "refined"} | ({"distance"} if self.model.memory_tokens else set())
        for name, known in self.categories.items():
            own = drawn | ({"detail", "refined_detail"} if known.zoom > 1 else set())
            for kind, weight in self.calibrate.fusion_weights.items():
                if weight > 0 and kind in own and kind not in known.scales:
                    raise ValueError(f"category {name!r} has no scale of the {kind} map")
        return self


def write_model(folder: Path, spec: DetectorSpec, tensors: dict[str, Tensor]) -> str:
    """Write a model's two files as one replacement of their folder, and give their digest.

    Args:
        folder: made if need be; one that exists may hold a model and nothing else.
        spec: the description.
        tensors: by name.

    Returns:
        The digest, 64 hex digits.

    Raises:
        CheckpointError: if the folder holds other files, or the disk is full.
    """
    others = {path.name for path in folder.glob("[!.]*")} - {SPEC_FILE, TENSORS_FILE}
    if others:
        raise CheckpointError(f"{folder}: holds {min(others)}; a model needs a folder of its own")
    ordered = {key: tensors[key].detach().cpu().contiguous() for key in sorted(tensors)}
    try:
        with replace_folder(folder) as draft:
            save_file(ordered, draft / TENSORS_FILE)
            text = seal_spec(spec.model_dump(mode="json"), hash_file(draft / TENSORS_FILE))
            (draft / SPEC_FILE).write_text(text, encoding="utf-8")
            return hash_model(draft)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder}: cannot be written: {error}") from error


def seal_spec(values: Mapping[str, Any], tensors_sha256: str) -> str:
    """Text of `detector.json` in the current format, in which any later change is noticed.

    Args:
        values: of a `DetectorSpec`.
        tensors_sha256: of `model.safetensors`.

    Returns:
        JSON with the key `seal`: the sha256 of this very text, with zeros for the seal.
    """
    facts = {"format_version": FORMAT_VERSION, "tensors_sha256": tensors_sha256, "seal": _NO_SEAL}
    text = json.dumps({**values, **facts}, indent=2, sort_keys=True) + "\n"
    return text.replace(f'"seal": "{_NO_SEAL}"', f'"seal": "{_hash_text(text)}"')


def read_model(folder: Path) -> tuple[DetectorSpec, dict[str, Tensor], str]:
    """Description, tensors and digest of a model folder.

    Raises:
        CheckpointError: if a file is missing, changed, of another program or of a newer format, or the two
            do not belong together.
    """
    spec, tensors_sha256 = _read_spec(folder / SPEC_FILE)
    path = folder / TENSORS_FILE
    tensors = read_tensors(path)
    if tensors_sha256 not in (None, hash_file(path)):
        raise CheckpointError(f"{path}: damaged, or of another model than {SPEC_FILE}")
    return spec, tensors, hash_model(folder)


def _read_spec(path: Path) -> tuple[DetectorSpec, str | None]:
    """Description, and the tensors' sha256, which format 1 does not state."""
    try:
        text = path.read_bytes().decode()
        values = json.loads(text, parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent}: no model here ({SPEC_FILE} is missing)") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if version not in (1, FORMAT_VERSION):
        raise CheckpointError(
            f"{path}: format version {version}, but this onenip reads versions 1 to {FORMAT_VERSION}"
        )
    tensors_sha256 = values.pop("tensors_sha256", None)
    if version != 1:
        seal = values.pop("seal", None)
        if seal != _hash_text(text.replace(f'"seal": "{seal}"', f'"seal": "{_NO_SEAL}"')):
            raise CheckpointError(f"{path}: damaged, or changed by hand: its seal does not fit")
    if version == 1:
        values = _upgrade(values)
    if isinstance(values.get("model"), dict):
        values["model"].setdefault("zoom", 1)  # of models from before there was any
    try:
        return DetectorSpec.model_validate_json(json.dumps(values)), tensors_sha256
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{path}: {key}{': ' if key else ''}{first['msg']}") from error


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no number that a model may hold")


def _upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """Content of format 1 as one of today: its thresholds stay, and promise nothing."""
    old = [known for known in values.get("categories", {}).values() if "calibrated_on" in known]
    for known in old:
        point = {
            "threshold": known["image_threshold"],
            "false_alarm_rate": values["calibrate"]["false_alarm_rate"],
            "false_alarm_rate_low": 0.0,
            "false_alarm_rate_high": 1.0,
            "synthetic_recall": None,
        }
        basis = known.pop("calibrated_on")
        known |= {
            "normal_names": [f"{basis} {i}" for i in range(len(known["normal_scores"]))],
            "held_out_scores": known["normal_scores"],
            "fitted_scores": [],
            "review_threshold": None,
            "min_normals": 1,
            "operating_point": point,
            "curve": [],
            "outliers": [],
            "warnings": ["the model is of an earlier version, which recorded no promises"],
        }
    return values


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: if the file is missing or damaged, or holds a value that is not finite.
    """
    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: {name} holds values that are not finite")
    return tensors


def hash_model(folder: Path) -> str:
    """sha256 over the description and the tensors of a model folder, as 64 hex digits."""
    digest = hashlib.sha256()
    for name in (SPEC_FILE, TENSORS_FILE):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
