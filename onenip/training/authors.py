"""Import of checkpoints of the authors' implementation.

A checkpoint is read as tensors only, nothing in it is executed, and every key must be known.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
import torch
from torch import Tensor

from onenip.data.cache import Cache
from onenip.data.loading import ResizedImages
from onenip.data.manifest import Sample, list_categories, scan_layout, select
from onenip.detector.detector import Detector
from onenip.errors import CheckpointError
from onenip.model.file import DetectorSpec
from onenip.model.network import Network
from onenip.model.weights import assign_backbone, name_efficientnet, read_state
from onenip.params import Params
from onenip.params.presets import load_preset
from onenip.synthesis import bank as synthetic_bank
from onenip.training.batches import build_training_set
from onenip.training.fit import calibrate_detector

BACKBONE = "tf_efficientnet_b4"

_BACKBONE_PREFIX, _TRAINED_PREFIX = "backbone.", "reconstruction."
_STRIDE = 16
# our modules by the authors' names; layers are numbered alike
_OUTER = {
    "input_projection": "input_proj",
    "output_projection": "output_proj",
    "final_norm": "transformer.decoder.norm",
    "final_attention": "transformer.decoder.final_attn_token_to_image",
}
_ENCODER = {
    "attention": "self_attn",
    "attention_norm": "norm1",
    "expand": "linear1",
    "contract": "linear2",
    "feedforward_norm": "norm2",
}
_DECODER = {
    "prompt_reads": "cross_attn_prompt_to_image",
    "prompt_norm": "norm1",
    "expand": "mlp.lin1",
    "contract": "mlp.lin2",
    "feedforward_norm": "norm2",
    "query_reads": "cross_attn_image_to_prompt",
    "query_norm": "norm3",
}
_REFINER = {
    "blocks.0": "upconv1.0",
    "blocks.1": "upconv1.1",
    "blocks.3": "upconv1.3",
    "blocks.4": "upconv2.0",
    "blocks.5": "upconv2.1",
    "blocks.7": "upconv2.3",
    "predictor": "predictor",
}
_LEAVES = {
    "packed_weight": "in_proj_weight",
    "packed_bias": "in_proj_bias",
    "output.weight": "out_proj.weight",
    "output.bias": "out_proj.bias",
}
_POSITION = {
    "pos_embed.row_embed.weight": "reconstruction.position.row",
    "pos_embed.col_embed.weight": "reconstruction.position.column",
}

log = logging.getLogger(__name__)


def import_authors_checkpoint(
    path: Path, *, data_dir: Path | None = None, seed: int = 0
) -> Detector:
    """Detector from a checkpoint of the authors' implementation.

    Args:
        path: a torch file, or safetensors, with the authors' keys, with or without the prefix `module.`.
        data_dir: folder in MVTec layout; from its normal training images, prompts, thresholds and the
            fusion constant of each category are calibrated. None: a detector without categories.
        seed: root of the synthetic anomalies that calibration uses.

    Returns:
        A detector with the authors' network; the input size follows from its token grid.

    Raises:
        CheckpointError: if the file is damaged or unsafe, or a key is missing, extra or misshapen.
        DataError: if the folder has no normal training images.
    """
    state = {key.removeprefix("module."): value for key, value in read_state(path).items()}
    backbone, trained = _take(state, _BACKBONE_PREFIX), _take(state, _TRAINED_PREFIX)
    if state:
        raise CheckpointError(f"{path}: unexpected key {min(state)}")
    params = _build_params(trained, origin=str(path))
    network = Network(params.model)
    load_trained(network, trained, origin=str(path))
    load_authors_backbone(network, backbone, origin=str(path))
    if data_dir is None:
        spec = DetectorSpec(
            model=params.model, calibrate=params.calibrate, categories={}, provenance={}
        )
        return Detector(network, spec=spec, states={})
    samples = scan_layout(
        data_dir,
        calibration_fraction=params.data.calibration_fraction,
        holdout_fraction=params.data.holdout_fraction,
    )
    normals = [sample for sample in samples if sample.subset not in ("test", "defect")]
    return _calibrate(network, params, normals, seed)


def load_trained(network: Network, state: dict[str, Tensor], *, origin: str) -> None:
    """Load the trained part, keys as in the authors' `reconstruction.*`, without that prefix.

    Raises:
        CheckpointError: naming the first key that is missing, extra or misshapen.
    """
    own, names = network.state_dict(), name_trained(network)
    shapes = {theirs: own[ours].shape for theirs, ours in names.items()}
    _require_same_keys(state, shapes, prefix=_TRAINED_PREFIX, origin=origin)
    network.load_state_dict({names[key]: tensor for key, tensor in state.items()}, strict=False)


def load_authors_backbone(network: Network, state: dict[str, Tensor], *, origin: str) -> None:
    """Load the authors' EfficientNet-B4; unused blocks are checked, then left out.

    Args:
        network: of a `paper` preset.
        state: keys as in the authors' `backbone.*`, without that prefix.
        origin: of the tensors, for messages.

    Raises:
        CheckpointError: naming the first key that is missing, extra or misshapen.
    """
    with torch.device("meta"):
        whole = timm.create_model(BACKBONE, pretrained=False).state_dict()
    names = name_efficientnet(BACKBONE)
    shapes = {theirs: whole[ours].shape for theirs, ours in names.items()}
    _require_same_keys(state, shapes, prefix=_BACKBONE_PREFIX, origin=origin)
    assign_backbone(network.backbone, {names[key]: tensor for key, tensor in state.items()})


def name_trained(network: Network) -> dict[str, str]:
    """Our name of each trained tensor, by the authors' name without `reconstruction.`."""
    modules = {f"reconstruction.{ours}": theirs for ours, theirs in _OUTER.items()}
    modules |= {f"refiner.{ours}": f"seghead.{theirs}" for ours, theirs in _REFINER.items()}
    counts = (network.params.encoder_layers, network.params.decoder_layers)
    for part, own, count in zip(("encoder", "decoder"), (_ENCODER, _DECODER), counts, strict=True):
        for i in range(count):
            modules |= {
                f"reconstruction.{part}.{i}.{ours}": f"transformer.{part}.layers.{i}.{theirs}"
                for ours, theirs in own.items()
            }
    names = dict(_POSITION)
    for key in network.state_dict():
        module = next((m for m in modules if key.startswith(f"{m}.")), None)
        if module is not None:
            leaf = key.removeprefix(f"{module}.")
            names[f"{modules[module]}.{_LEAVES.get(leaf, leaf)}"] = key
    return names


def _require_same_keys(
    state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], *, prefix: str, origin: str
) -> None:
    """Check that the keys and shapes are the expected ones; counters may be missing."""
    for key, shape in shapes.items():
        if key not in state:
            if key.endswith(".num_batches_tracked"):
                continue
            raise CheckpointError(f"{origin}: key {prefix}{key} is missing")
        if state[key].shape != shape:
            found = tuple(state[key].shape)
            raise CheckpointError(f"{origin}: {prefix}{key} has shape {found}, not {tuple(shape)}")
    extra = sorted(state.keys() - shapes.keys())
    if extra:
        raise CheckpointError(f"{origin}: unexpected key {prefix}{extra[0]}")


def _take(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Move the entries with a prefix into a dict of their own, without the prefix."""
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
    cache = Cache()
    fitted = select(samples, subset="fit")
    data = build_training_set(network, fitted, seed=seed, cache=cache, progress=False)
    held_out = select(samples, subset="calibration") or fitted
    size = params.model.input_size  # the paper's model has no zoom
    images = ResizedImages(held_out, dict.fromkeys(list_categories(held_out), size), cache)
    entries = synthetic_bank.draw_entries(
        params.synthesize, images, range(len(held_out)), seed=seed, progress=False
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "bank"
        synthetic_bank.write(folder, entries)
        bank = synthetic_bank.read(folder)
        log.info("calibrating on %d normal images", len(samples))
        return calibrate_detector(
            network, params, samples=samples, data=data, bank=bank, provenance={}
        )
