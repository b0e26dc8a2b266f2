"""Calibration data of a category as features: prompts, held-out normal images, synthetic anomalies."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from onenip.data.loading import ResizedImages
from onenip.data.manifest import Sample, select
from onenip.detector.calibration import (
    MAX_CALIBRATION_IMAGES,
    MIN_CALIBRATION_IMAGES,
    CalibrationImage,
    add_memories,
    choose_prompts,
)
from onenip.detector.category import CategoryState, Excluded, embed_globally
from onenip.detector.embedding import Embedder
from onenip.images import load_image, resize_image
from onenip.model.network import CategoryStatistics, Network
from onenip.synthesis.bank import StoredAnomaly
from onenip.training.batches import TrainingSet

# normals of a category that weights are selected on: enough to rank weights
MAX_SELECTION_IMAGES = 16

log = logging.getLogger(__name__)


def choose_state(
    network: Network, data: TrainingSet, category: str, *, prompts: int
) -> tuple[CategoryState, list[str]]:
    """Tensors of a category of the training set, and the names of its prompts.

    Args:
        network: as it is now, which encodes the prompts.
        data: the training set.
        category: one of its categories.
        prompts: how many, at most.
    """
    indices = data.measured[category]
    device = network.coarse_mean.device
    picks = choose_prompts(data.embeddings[category], count=prompts)
    chosen = [int(indices[i]) for i in picks]
    coarse = torch.cat([data.features(i).coarse for i in chosen])
    coarse = network.standardize(coarse.to(device))
    state = CategoryState(
        prompts=torch.tensor(np.stack([data.images[i] for i in chosen])),
        encoded=torch.cat([network.encode(one[None]) for one in coarse]),
        embeddings=embed_globally(coarse),
        statistics=data.statistics[category].to(device),
    )
    return state, [data.names[i] for i in chosen]


@dataclass(frozen=True)
class HeldOut:
    """Held-out normal images of a category, by what they are used for.

    Attributes:
        selection: weights are selected on these.
        calibration: thresholds come from these alone, and from fitted ones.
    """

    selection: list[Sample]
    calibration: list[Sample]


def split_held_out(samples: Sequence[Sample], category: str, *, selects: bool) -> HeldOut:
    """Held-out normals of a category: a third, by hash, for selecting weights if a training does so.

    The others are for thresholds.
    """
    held_out = sorted(
        select(samples, category=category, subset="calibration"), key=lambda sample: sample.sha256
    )
    share = max(len(held_out) // 3, min(len(held_out) - 1, 1))
    selecting = min(share, MAX_SELECTION_IMAGES) if selects and held_out else 0
    return HeldOut(held_out[:selecting], held_out[selecting:][:MAX_CALIBRATION_IMAGES])


def gather_normals(
    network: Network,
    embedder: Embedder,
    samples: Sequence[Sample],
    data: TrainingSet,
    category: str,
    *,
    prompts: Container[str],
    zoom: int,
    selects: bool,
    seed: int,
) -> tuple[dict[str, CalibrationImage], CategoryStatistics]:
    """All normal images of a category to calibrate on, and the statistics and memory that they give.

    Each is judged without its own memory tokens, a prompt, which would be judged by itself, not at all. An
    image that weights were selected on counts as fitted. A category that training has seen very many normals
    of keeps the statistics and memory of those.

    Args:
        network: trained.
        embedder: of its backbone.
        samples: of the manifest.
        data: the training set.
        category: one of its categories.
        prompts: names of the category's prompts.
        zoom: of the category; above 1, fitted images are read anew.
        selects: whether weights were selected on held-out images.
        seed: root of the memory's choice.

    Returns:
        The images by name, held-out ones first, then fitted ones, and the statistics.
    """
    held_out = split_held_out(samples, category, selects=selects)
    if len(held_out.calibration) < MIN_CALIBRATION_IMAGES:
        log.warning(
            "%s: only %d held-out normal images to choose a threshold from",
            category,
            len(held_out.calibration),
        )
    fresh = embed_files(embedder, held_out.calibration, zoom=zoom)
    found = {s.name: image for s, image in zip(held_out.calibration, fresh, strict=True)}
    seen = embed_files(embedder, held_out.selection, zoom=zoom)
    for sample, image in zip(held_out.selection, seen, strict=True):
        found[sample.name] = replace(image, is_fitted=True)
    indices = data.measured[category][:MAX_CALIBRATION_IMAGES]
    files = [data.images.samples[i] for i in indices]
    reused = embed_files(embedder, files, zoom=zoom)
    owners, device = data.owners[category], network.coarse_mean.device
    fitted = {
        data.names[i]: replace(
            image, excluded=Excluded((owners == int(i))[None].to(device)), is_fitted=True
        )
        for i, image in zip(indices, reused, strict=True)
    }
    statistics = data.statistics[category]
    if network.uses_memory and (zoom > 1 or len(fitted) < MAX_CALIBRATION_IMAGES):
        found |= fitted
        generator = torch.Generator().manual_seed(seed)
        statistics, images = add_memories(network, list(found.values()), generator=generator)
        if len(fitted) >= MAX_CALIBRATION_IMAGES:
            statistics = replace(data.statistics[category], detail=statistics.detail)
            images = [
                replace(new, excluded=Excluded(old.excluded.fine, new.excluded.detail))
                for new, old in zip(images, found.values(), strict=True)
            ]
        found = dict(zip(found, images, strict=True))
        fitted = {name: image for name, image in found.items() if name in fitted}
    judged = {name: image for name, image in fitted.items() if name not in prompts}
    held = {name: image for name, image in found.items() if name not in fitted}
    return held | (judged or ({} if held else fitted)), statistics.to(device)


def embed_files(
    embedder: Embedder, files: Iterable[Sample | Path], *, zoom: int
) -> list[CalibrationImage]:
    """Images to calibrate on, whose features are in the cache: samples, or files of synthetic anomalies."""
    size = embedder.network.params.zoomed_size(zoom)

    def load_pixels(file: Sample | Path) -> NDArray[np.uint8]:
        if isinstance(file, Path):
            return resize_image(load_image(file), size)
        return ResizedImages([file], {file.category: size}, embedder.cache)[0]

    def hold(file: Sample | Path) -> CalibrationImage:
        read = embedder.hold(lambda: load_pixels(file))
        return CalibrationImage(lambda: embedder.standardize(read()))

    return [hold(file) for file in files]


def pick_anomalies(
    bank: Sequence[StoredAnomaly], category: str, *, held_out: Container[str]
) -> list[StoredAnomaly]:
    """Synthetic anomalies of a category, made from held-out normals where there are any.

    Args:
        bank: of all categories.
        category: whose anomalies are wanted.
        held_out: names of the normal images kept out of fitting.
    """
    own = [stored for stored in bank if stored.category == category]
    unseen = [stored for stored in own if stored.made_from in held_out]
    return (unseen or own)[:MAX_CALIBRATION_IMAGES]
