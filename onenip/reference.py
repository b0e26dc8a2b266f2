"""Checkpoints of the authors' implementation, turned into models of ours.

Nothing of a checkpoint is executed: it is read as tensors only, and every key must be accounted for.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from torch import Tensor

from onenip import synthetic_bank
from onenip.dataset import Sample, scan_layout, select
from onenip.detector import Detector
from onenip.errors import CheckpointError
from onenip.fitting import calibrate_detector
from onenip.loading import load_resized
from onenip.model_file import DetectorSpec
from onenip.network import Network
from onenip.params import Params
from onenip.preset import load_preset
from onenip.training_set import build_training_set
from onenip.weights import assign_backbone, read_state, rename_efficientnet

BACKBONE = "tf_efficientnet_b4"

_STRIDE = 16
_TRAINED = (
    (r"^input_proj\.", "input_projection."),
    (r"^output_proj\.", "output_projection."),
    (r"^pos_embed\.row_embed\.weight$", "position.row"),
    (r"^pos_embed\.col_embed\.weight$", "position.column"),
    (r"^transformer\.encoder\.layers\.(\d+)\.", r"encoder.\1."),
    (r"^transformer\.decoder\.layers\.(\d+)\.", r"decoder.\1."),
    (r"^transformer\.decoder\.norm\.", "final_norm."),
    (r"^transformer\.decoder\.final_attn_token_to_image\.", "final_attention."),
    (r"\.self_attn\.", ".attention."),
    (r"\.cross_attn_prompt_to_image\.", ".prompt_reads."),
    (r"\.cross_attn_image_to_prompt\.", ".query_reads."),
    (r"\.in_proj_(weight|bias)$", r".packed_\1"),
    (r"\.out_proj\.", ".output."),
    (r"\.(?:linear1|mlp\.lin1)\.", ".expand."),
    (r"\.(?:linear2|mlp\.lin2)\.", ".contract."),
    (r"^(encoder\.\d+)\.norm1\.", r"\1.attention_norm."),
    (r"^(decoder\.\d+)\.norm1\.", r"\1.prompt_norm."),
    (r"^((?:en|de)coder\.\d+)\.norm2\.", r"\1.feedforward_norm."),
    (r"^(decoder\.\d+)\.norm3\.", r"\1.query_norm."),
)
_REFINER = {"upconv1.0": "blocks.0", "upconv1.1": "blocks.1", "upconv1.3": "blocks.3"}
_REFINER |= {"upconv2.0": "blocks.4", "upconv2.1": "blocks.5", "upconv2.3": "blocks.7"}
_REFINER |= {"predictor": "predictor"}

log = logging.getLogger(__name__)


def import_reference(path: Path, *, data_dir: Path | None = None, seed: int = 0) -> Detector:
    """Detector of an authors' checkpoint.

    Args:
        path: a torch file, or safetensors, whose keys are the reference's, behind `module.` or not.
        data_dir: folder in MVTec layout; from its normal training images, prompts, thresholds and the
            fusion constant of each category are calibrated. None: a detector without categories.
        seed: root of the synthetic anomalies that calibration uses.

    Returns:
        A detector with the reference's network at the input size that its token grid tells.

    Raises:
        CheckpointError: if the file is damaged or unsafe, or a key is missing, extra or misshapen.
        DataError: if the folder has no normal training images.
    """
    state = {key.removeprefix("module."): value for key, value in read_state(path).items()}
    backbone = _take(state, "backbone.")
    trained = _take(state, "reconstruction.")
    if state:
        raise CheckpointError(f"{path}: unexpected key {min(state)}")
    params = _build_params(trained, origin=str(path))
    network = Network(params.model)
    load_trained(network, trained, origin=str(path))
    load_reference_backbone(network, backbone, origin=str(path))
    if data_dir is None:
        spec = DetectorSpec(
            model=params.model, calibrate=params.calibrate, categories={}, provenance={}
        )
        return Detector(network, spec=spec, prompts={}, references={})
    samples = scan_layout(
        data_dir,
        calibration_fraction=params.data.calibration_fraction,
        holdout_fraction=params.data.holdout_fraction,
    )
    normals = [sample for sample in samples if sample.subset != "test"]
    return _calibrate(network, params, normals, seed)


def load_trained(network: Network, state: dict[str, Tensor], *, origin: str) -> None:
    """Load the trained part, keys as in the reference's `reconstruction.*`, without that prefix.

    Raises:
        CheckpointError: naming the first key that is missing, extra or misshapen.
    """
    for ours, prefix in ((network.reconstruction, ""), (network.refiner, "seghead.")):
        own = {k: v for k, v in state.items() if k.startswith("seghead.") == bool(prefix)}
        renamed = {rename_trained(key): (key, value) for key, value in own.items()}
        expected = ours.state_dict()
        for key, tensor in expected.items():
            if key not in renamed and not key.endswith("num_batches_tracked"):
                raise CheckpointError(f"{origin}: no key of the reference gives {key}")
            if key in renamed and renamed[key][1].shape != tensor.shape:
                found = tuple(renamed[key][1].shape)
                raise CheckpointError(
                    f"{origin}: {renamed[key][0]} has shape {found}, not {tuple(tensor.shape)}"
                )
        for key, (theirs, _) in renamed.items():
            if key not in expected:
                raise CheckpointError(f"{origin}: unexpected key {theirs}")
        ours.load_state_dict({key: value for key, (_, value) in renamed.items()}, strict=False)


def load_reference_backbone(network: Network, state: dict[str, Tensor], *, origin: str) -> None:
    """Load the reference's EfficientNet-B4; blocks that are not used are checked and left out.

    Raises:
        CheckpointError: naming the first key that is missing, extra or misshapen.
    """
    renamed = rename_efficientnet(state, BACKBONE)
    with torch.device("meta"):
        expected = timm.create_model(BACKBONE, pretrained=False).state_dict()
    for key in renamed:
        if key not in expected:
            raise CheckpointError(f"{origin}: unexpected backbone key {key}")
        if renamed[key].shape != expected[key].shape:
            found, wanted = tuple(renamed[key].shape), tuple(expected[key].shape)
            raise CheckpointError(f"{origin}: backbone {key} has shape {found}, not {wanted}")
    assign_backbone(network.backbone, renamed)


def rename_trained(key: str) -> str:
    """Our name of a reference's key (without `reconstruction.`)."""
    if key.startswith("seghead."):
        inner = key.removeprefix("seghead.")
        stem, _, leaf = inner.rpartition(".")
        return f"{_REFINER.get(stem, stem)}.{leaf}"
    for pattern, ours in _TRAINED:
        key = re.sub(pattern, ours, key)
    return key


def _take(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Remove and give the keys behind a prefix, without it."""
    keys = [key for key in state if key.startswith(prefix)]
    return {key.removeprefix(prefix): state.pop(key) for key in keys}


def _build_params(trained: dict[str, Tensor], *, origin: str) -> Params:
    """The paper's params at the input size of the position embedding's grid."""
    try:
        rows = len(trained["pos_embed.row_embed.weight"])
        columns = len(trained["pos_embed.col_embed.weight"])
    except KeyError as error:
        raise CheckpointError(f"{origin}: key reconstruction.{error.args[0]} is missing") from error
    values = load_preset("paper").dump()
    values["model"]["input_size"] = [rows * _STRIDE, columns * _STRIDE]
    return Params.parse(values, origin=origin)


def _calibrate(network: Network, params: Params, samples: Sequence[Sample], seed: int) -> Detector:
    size = params.model.input_size
    fitted = select(samples, subset="fit")
    workers = os.cpu_count() or 1
    data = build_training_set(
        network,
        load_resized(fitted, size, cache_dir=None, workers=workers, progress=False),
        names=[s.name for s in fitted],
        categories=[s.category for s in fitted],
        seed=seed,
        cache_dir=None,
        progress=False,
    )
    held_out = select(samples, subset="calibration") or fitted
    images = load_resized(held_out, size, cache_dir=None, workers=workers, progress=False)
    entries = synthetic_bank.draw_entries(
        params.synthesize, held_out, images, seed=seed, progress=False
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "bank"
        synthetic_bank.write(folder, entries)
        bank = synthetic_bank.read(folder)
        log.info("calibrating on %d normal images", len(samples))
        return calibrate_detector(
            network, params, samples=samples, data=data, bank=bank, provenance={}
        )
