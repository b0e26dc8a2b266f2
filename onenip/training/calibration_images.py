"""Calibration data of a category as features: prompts, held-out normal images, synthetic anomalies."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

import torch

from onenip.data.manifest import Sample, select
from onenip.detector.calibration import (
    MAX_CALIBRATION_IMAGES,
    MIN_CALIBRATION_IMAGES,
    CalibrationImage,
    choose_prompts,
)
from onenip.detector.category import CategoryState, embed_globally
from onenip.images import load_image, resize_image
from onenip.model.network import Features, Network
from onenip.synthesis.bank import StoredAnomaly
from onenip.training.batches import TrainingSet

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
    indices = data.list_indices(category)
    device = network.coarse_mean.device
    picks = choose_prompts(data.embeddings[indices], count=prompts)
    chosen = [int(indices[i]) for i in picks]
    coarse = network.standardize(data.features.coarse[chosen].to(device))
    state = CategoryState(
        prompts=torch.tensor(data.images[chosen]),
        encoded=torch.cat([network.encode(one[None]) for one in coarse]),
        embeddings=embed_globally(coarse),
        statistics=data.statistics[category].to(device),
    )
    return state, [data.names[i] for i in chosen]


def gather_normals(
    network: Network, samples: Sequence[Sample], data: TrainingSet, category: str
) -> tuple[list[CalibrationImage], str]:
    """Held-out normal images of a category, joined by fitted ones where there are too few.

    Returns:
        The images, and their subset as the model records it.
    """
    held_out = select(samples, category=category, subset="calibration")
    normals = embed_files(network, [s.path for s in held_out[:MAX_CALIBRATION_IMAGES]])
    if len(normals) >= MIN_CALIBRATION_IMAGES:
        return normals, "calibration"
    log.warning(
        "%s: only %d held-out normal images; thresholds also rest on fitted ones",
        category,
        len(held_out),
    )
    normals += _reuse_fitted(network, data, category)
    return normals, "calibration and fit" if held_out else "fit"


def embed_files(network: Network, paths: Iterable[Path]) -> list[CalibrationImage]:
    """Features of image files kept out of fitting: held-out normals, or synthetic anomalies."""
    size, device = network.params.input_size, network.coarse_mean.device
    images = (torch.tensor(resize_image(load_image(path), size)) for path in paths)
    return [CalibrationImage(network.embed(image[None].to(device))) for image in images]


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


def _reuse_fitted(network: Network, data: TrainingSet, category: str) -> list[CalibrationImage]:
    indices = data.list_indices(category)[:MAX_CALIBRATION_IMAGES]
    owners = data.owners[category]
    features = data.features
    return [
        CalibrationImage(
            Features(network.standardize(features.coarse[i][None]), features.fine[i][None]),
            owners == int(i),
        )
        for i in indices
    ]
