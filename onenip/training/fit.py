"""From normal images to a detector: features, training, calibration, in that order.

Takes samples and params; knows no command line, experiment tracking or registry.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from onenip.data.cache import Cache
from onenip.data.loading import count_cores
from onenip.data.manifest import Sample, Subset, list_categories, select
from onenip.detector.calibration import measure_category
from onenip.detector.category import CategoryState
from onenip.detector.detector import Detector
from onenip.detector.devices import NEVER, VARIABLE, choose_device, keep_freed_memory
from onenip.detector.embedding import Embedder
from onenip.detector.operating_points import decide, describe_doubts
from onenip.detector.zoom import choose_zooms
from onenip.errors import CheckpointError, DataError, ParamsError
from onenip.model.file import CategoryMeasurements, DetectorSpec, read_model
from onenip.model.folding import fold_network
from onenip.model.network import Network
from onenip.model.weights import load_backbone_weights
from onenip.params import Params, TrainParams
from onenip.synthesis import bank as synthetic_bank
from onenip.synthesis.bank import StoredAnomaly
from onenip.training.batches import (
    MAX_MEASURED,
    BatchPlan,
    RealDefect,
    TrainingSet,
    build_training_set,
    load_defects,
)
from onenip.training.calibration_images import (
    choose_state,
    embed_files,
    gather_normals,
    pick_anomalies,
    split_held_out,
)
from onenip.training.checkpoint import trained_tensors
from onenip.training.loop import OnLog, TrainingRecord, count_steps, fit
from onenip.training.selection import SelectionSet

_FIT_ORDER: tuple[Subset, ...] = ("fit", "calibration", "holdout")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """A trained detector and the record of its training."""

    detector: Detector
    record: TrainingRecord


def fit_detector(
    params: Params,
    *,
    samples: Sequence[Sample],
    bank: Sequence[StoredAnomaly],
    provenance: dict[str, Any],
    checkpoint_dir: Path,
    cache: Cache,
    on_log: OnLog,
    progress: bool,
    fabric: Fabric | None = None,
) -> FitResult:
    """Train and calibrate one detector for all categories of the samples.

    Args:
        params: all sections.
        samples: of the manifest; no test image is read.
        bank: synthetic anomalies for calibration.
        provenance: facts to store in the model.
        checkpoint_dir: state of a killed training, resumed and written here.
        cache: of resized images and features.
        on_log: called with a step's number and losses.
        progress: whether to show bars.
        fabric: launched; None to launch what the params ask for.

    Raises:
        DataError: if a category has no image to fit to.
        DivergedError: if the training's loss stops being finite.
    """
    samples = _with_fit_images(samples)
    fabric = fabric or start_fabric(params.train)
    set_determinism(params.seed, is_deterministic=params.train.deterministic)
    network = build_network(params, fabric)
    fitted = select(samples, subset="fit")
    is_nearest = params.train.prompt_choice == "nearest"
    with fabric.rank_zero_first():  # the others then find features in the cache
        data = build_training_set(
            network,
            fitted,
            seed=params.seed,
            cache=cache,
            progress=progress,
            limit=None if is_nearest else MAX_MEASURED,
            embeds_all=_count_drawn(params.train, len(fitted), fabric.world_size) >= len(fitted),
        )
    _warm_start(network, params.train.warm_start)
    plan = BatchPlan(
        data,
        synthetic_bank.build_synthesizer(
            params.synthesize, size=params.model.input_size, seed=params.seed
        ),
        batch_size=params.train.batch_size,
        seed=params.seed,
        prompt_choice=params.train.prompt_choice,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        accumulate_steps=params.train.accumulate_steps,
        defects=_load_defects(samples, params),
    )
    selection = _prepare_selection(network, params, samples=samples, data=data, bank=bank)
    keep_freed_memory(mapped_from=NEVER, most=NEVER)
    record = fit(
        network,
        plan,
        params=params.train,
        seed=params.seed,
        fabric=fabric,
        checkpoint_dir=checkpoint_dir,
        on_log=on_log,
        progress=progress,
        workers=min(8, count_cores()) if fabric.device.type == "cuda" else 0,
        selection=selection,
    )
    network.to("cpu")
    if record.selected is not None:
        provenance = provenance | {
            "selected_step": int(record.selected["step"]),
            "selection_score": record.selected["score"],
        }
    detector = calibrate_detector(
        network, params, samples=samples, data=data, bank=bank, provenance=provenance
    )
    return FitResult(detector, record)


def calibrate_detector(
    network: Network,
    params: Params,
    *,
    samples: Sequence[Sample],
    data: TrainingSet,
    bank: Sequence[StoredAnomaly],
    provenance: dict[str, Any],
) -> Detector:
    """Detector of a trained network: prompts, scales and thresholds for every category."""
    measured: dict[str, CategoryMeasurements] = {}
    states: dict[str, CategoryState] = {}
    folded = fold_network(network)  # as the detector will score
    selects = params.train.selection_trials > 0
    embedder = Embedder(network, data.cache)
    zooms = choose_zooms(samples, params.model)
    present = list_categories(samples)
    with torch.inference_mode():
        for number, category in enumerate(present):
            log.info("%s: thresholds, category %d of %d", category, number + 1, len(present))
            zoom = zooms[category]
            state, names = choose_state(folded, data, category, prompts=params.calibrate.prompts)
            held_out = split_held_out(samples, category, selects=selects).calibration
            anomalies = pick_anomalies(bank, category, held_out={s.name for s in held_out})
            normals, statistics = gather_normals(
                folded,
                embedder,
                samples,
                data,
                category,
                prompts=names,
                zoom=zoom,
                selects=selects,
                seed=params.seed * 1009 + number,
            )
            state = replace(state, statistics=statistics)
            own = measure_category(
                folded,
                params.calibrate,
                state=state,
                normals=list(normals.values()),
                anomalies=embed_files(embedder, [stored.image for stored in anomalies], zoom=zoom),
                names=list(normals),
                prompt_names=names,
                zoom=zoom,
                is_provisional=False,
            )
            sample_range = select(samples, category=category)[0].sample_range
            measured[category] = own.model_copy(update={"sample_range": sample_range})
            states[category] = state
    categories = decide(measured, params.calibrate)
    for name, known in categories.items():
        for text in describe_doubts(known):
            log.warning("%s: %s", name, text)
    spec = DetectorSpec(
        model=params.model,
        calibrate=params.calibrate,
        categories=categories,
        provenance=provenance,
    )
    return Detector(
        network,
        spec=spec,
        states=states,
        folded=folded,
    )


def build_network(params: Params, fabric: Fabric) -> Network:
    """Network with the backbone's weights loaded, on the fabric's device."""
    network = Network(params.model).to(memory_format=torch.channels_last)
    load_backbone_weights(
        network.backbone,
        name=params.model.backbone,
        weights=params.model.weights,
        seed=params.seed,
    )
    return network.to(fabric.device)


def start_fabric(params: TrainParams) -> Fabric:
    """Device, precision and strategy of a training.

    The device is that of ONENIP_DEVICE, or else CUDA if there is any, or else the CPU. With more than one
    process, each of them runs the whole program from its beginning.

    Raises:
        DeviceError: if this machine has no such device.
        ParamsError: if several processes are asked for, but ONENIP_DEVICE names one GPU.
    """
    default = "cuda" if torch.cuda.is_available() else "cpu"
    device = choose_device(None if os.environ.get(VARIABLE) else default)
    devices: int | str | list[int] = params.devices
    if device.index is not None and device.type == "cuda":
        if devices not in (1, "auto"):
            message = (
                f"train.devices: {devices} processes cannot share {device}, which {VARIABLE} names"
            )
            raise ParamsError(message, key="train.devices")
        devices = [device.index]
    elif devices == "auto" and device.type == "cpu":
        devices = 1
    precision: str = params.precision
    if precision == "auto":
        # emulated bfloat16 would be slower than either
        is_real = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        mixed = "bf16-mixed" if is_real else "16-mixed"
        precision = mixed if device.type == "cuda" else "32-true"
    is_shared = params.hosts > 1 or (isinstance(devices, int) and devices > 1)
    fabric = Fabric(
        accelerator=device.type,
        devices=devices,
        num_nodes=params.hosts,
        precision=precision,  # type: ignore[arg-type]  # one of its literals
        strategy="ddp" if is_shared else "auto",
    )
    fabric.launch()
    return fabric


def set_determinism(seed: int, *, is_deterministic: bool) -> None:
    """Seed the global generators of libraries, and make torch deterministic if asked to."""
    random.seed(seed)
    torch.manual_seed(seed)
    if is_deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by cuBLAS
    torch.use_deterministic_algorithms(mode=is_deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it
    torch.backends.cudnn.benchmark = not is_deterministic


def _with_fit_images(samples: Sequence[Sample]) -> list[Sample]:
    """Samples in which every category has an image to fit to.

    A new category has few images, and their hashes may keep all of them for something else: then
    those of calibration, or else those held out, are fitted to.

    Raises:
        DataError: if a category has no normal training image at all.
    """
    found = list(samples)
    for category in list_categories(samples):
        own = {name: select(samples, category=category, subset=name) for name in _FIT_ORDER}
        first = next((name for name in _FIT_ORDER if own[name]), None)
        if first is None:
            raise DataError(f"category {category}: no normal images to train on in train/good")
        if first != "fit":
            taken = {sample.name for sample in own[first]}
            found = [replace(s, subset="fit") if s.name in taken else s for s in found]
    return found


def _count_drawn(params: TrainParams, images: int, processes: int) -> int:
    """Normal images that a training draws in all, one of them counted each time."""
    samples = params.batch_size * params.accumulate_steps * processes
    return samples * count_steps(params, -(-images // samples))


def _load_defects(samples: Sequence[Sample], params: Params) -> list[RealDefect]:
    """Confirmed defects to learn from, if the params want any."""
    found = select(samples, subset="defect")
    if found and params.train.real_defects == 0:
        log.info("%d confirmed defects are not learnt from: train.real_defects is 0", len(found))
        return []
    return load_defects(found, params.model.input_size)


def _prepare_selection(
    network: Network,
    params: Params,
    *,
    samples: Sequence[Sample],
    data: TrainingSet,
    bank: Sequence[StoredAnomaly],
) -> SelectionSet | None:
    """Images to select weights on; None without selection, or without such images."""
    if params.train.selection_trials == 0:
        return None
    found = SelectionSet(network, params.calibrate, samples=samples, data=data, bank=bank)
    if found.categories:
        return found
    log.warning(
        "no category has held-out normals and synthetic anomalies: the last weights are kept"
    )
    return None


def _warm_start(network: Network, folder: str | None) -> None:
    """Start from another model's trained weights.

    Raises:
        CheckpointError: if a tensor is missing or of another shape.
    """
    if folder is None:
        return
    _, tensors, _ = read_model(Path(folder))
    own = network.state_dict()
    taken = {}
    for key, value in tensors.items():
        name = key.removeprefix("network.")
        if name in own and not name.startswith(("backbone.", "coarse_")):
            if own[name].shape != value.shape:
                raise CheckpointError(
                    f"train.warm_start: {folder}: {name} has shape {tuple(value.shape)}, "
                    f"not {tuple(own[name].shape)}"
                )
            taken[name] = value
    missing = trained_tensors(network).keys() - taken.keys()
    if missing:
        raise CheckpointError(f"train.warm_start: {folder}: {min(missing)} is missing")
    network.load_state_dict(taken, strict=False)
    log.info("warm start from %s: %d tensors", folder, len(taken))
