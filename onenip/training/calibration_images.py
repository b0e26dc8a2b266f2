"""Calibration data of a category as features: prompts, held-out normal images, synthetic anomalies."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
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

MAX_SELECTION_IMAGES = (
    16  # normals of a category that weights are selected on: enough to rank weights
)

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
    samples: Sequence[Sample],
    data: TrainingSet,
    category: str,
    *,
    prompts: Container[str],
    selects: bool,
) -> dict[str, CalibrationImage]:
    """All normal images of a category to calibrate on, by name: held-out ones first, then fitted ones.

    A fitted one is judged without its own memory tokens, a prompt, which would be judged by itself, not at
    all. An image that weights were selected on counts as fitted.

    Args:
        network: trained.
        samples: of the manifest.
        data: the training set.
        category: one of its categories.
        prompts: names of the category's prompts.
        selects: whether weights were selected on held-out images.
    """
    held_out = split_held_out(samples, category, selects=selects)
    if len(held_out.calibration) < MIN_CALIBRATION_IMAGES:
        log.warning(
            "%s: only %d held-out normal images to choose a threshold from",
            category,
            len(held_out.calibration),
        )
    fresh = embed_files(network, [sample.path for sample in held_out.calibration])
    found = {s.name: image for s, image in zip(held_out.calibration, fresh, strict=True)}
    seen = embed_files(network, [sample.path for sample in held_out.selection])
    for sample, image in zip(held_out.selection, seen, strict=True):
        found[sample.name] = replace(image, is_fitted=True)
    fitted = _reuse_fitted(network, data, category)
    judged = {name: image for name, image in fitted.items() if name not in prompts}
    return found | (judged or ({} if found else fitted))


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


def _reuse_fitted(
    network: Network, data: TrainingSet, category: str
) -> dict[str, CalibrationImage]:
    indices = data.list_indices(category)[:MAX_CALIBRATION_IMAGES]
    owners = data.owners[category]
    features = data.features
    return {
        data.names[i]: CalibrationImage(
            Features(network.standardize(features.coarse[i][None]), features.fine[i][None]),
            owners == int(i),
            is_fitted=True,
        )
        for i in indices
    }
