"""Training batches: normal images with cached features, synthetic anomalies, prompts.

The backbone is frozen, so features of normal images and their nearest memory tokens are computed once.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from onenip.detector.calibration import measure_statistics
from onenip.detector.category import embed_globally
from onenip.errors import DataError, DivergedError, ParamsError
from onenip.folders import keep_newest, write_whole
from onenip.model.features import Backbone
from onenip.model.folding import fold_backbone
from onenip.model.network import CategoryStatistics, Features, Network
from onenip.model.weights import hash_backbone
from onenip.synthesis.anomalies import Synthesizer
from onenip.version import hash_code

_EMBED_BATCH = 8
_KEPT_ENTRIES = 3  # of the cache of features
_DONORS = 2  # further images of the category that a synthetic anomaly may take patches from

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSet:
    """Normal images to fit to, and everything computed from them once.

    Attributes:
        images: [n, H, W, 3] uint8 at input size.
        names: [n] of the images, for messages.
        categories: [n] name of each image's category.
        features: coarse float32 [n, C, h, w] and fine float16 [n, C, h8, w8], both raw; on disk where they
            are cached.
        embeddings: [n, C] float, global.
        statistics: by category.
        distances: [n, N8] float, to the nearest memory tokens of other images; empty without memory.
        matches: [n, N8] int64, those tokens' indices; empty without memory.
        owners: by category, the index of the image that each memory token comes from.
    """

    images: NDArray[np.uint8]
    names: list[str]
    categories: list[str]
    features: Features
    embeddings: Tensor
    statistics: dict[str, CategoryStatistics]
    distances: Tensor
    matches: Tensor
    owners: dict[str, Tensor]

    def list_indices(self, category: str) -> NDArray[np.intp]:
        """Indices of a category's images."""
        return np.flatnonzero(np.array(self.categories) == category)


def build_training_set(
    network: Network,
    images: NDArray[np.uint8],
    *,
    names: list[str],
    categories: list[str],
    seed: int,
    cache_dir: Path | None,
    progress: bool,
) -> TrainingSet:
    """Features, statistics and matches of normal images; sets the network's standardisation.

    Args:
        network: with its backbone's weights; its `coarse_mean` and `coarse_std` are set.
        images: [n, H, W, 3] uint8 at input size.
        names: [n].
        categories: [n].
        seed: root of the memories' choice.
        cache_dir: where features are kept from run to run; None keeps none.
        progress: whether to show a bar.

    Raises:
        DivergedError: if features are not finite, naming the images.
    """
    network.coarse_mean.zero_()
    network.coarse_std.fill_(1)
    raw = embed_cached(network, images, cache_dir=cache_dir, progress=progress)
    _check_finite(raw, names)
    if network.params.standardize:
        overall = CategoryStatistics.measure(list(raw.coarse))
        network.coarse_mean.copy_(overall.mean)
        network.coarse_std.copy_(overall.std)
    statistics: dict[str, CategoryStatistics] = {}
    owners = {}
    size = int(np.prod(network.fine_grid)) if network.uses_memory else 0
    distances = torch.zeros(len(images), size)
    matches = torch.zeros(len(images), size, dtype=torch.int64)
    with torch.inference_mode():
        for number, category in enumerate(sorted(set(categories))):
            indices = np.flatnonzero(np.array(categories) == category)
            generator = torch.Generator().manual_seed(seed * 1009 + number)
            fine = list(_take(raw.fine, indices))
            own, owner = measure_statistics(network, fine, generator=generator)
            statistics[category], owners[category] = own, torch.tensor(indices)[owner]
            if not network.uses_memory:
                continue
            for index in indices:
                tokens = network.average_tokens(own.standardize(raw.fine[index][None]))
                excluded = (owners[category] == int(index))[None]
                match = network.match(tokens, own.memory, excluded=excluded)
                distances[index], matches[index] = match.distance[0], match.index[0]
    return TrainingSet(
        images=images,
        names=names,
        categories=categories,
        features=raw,
        embeddings=torch.cat(
            [embed_globally(network.standardize(part)) for part in raw.coarse.split(_EMBED_BATCH)]
        ),
        statistics=statistics,
        distances=distances.clone(),
        matches=matches.clone(),
        owners=owners,
    )


def embed_images(network: Network, backbone: Backbone, images: Tensor) -> Features:
    """Features of images as a training sees them, whether they are normal or synthetic anomalies.

    In 32 bits also under mixed precision, and fine ones rounded to the 16 bits in which those of normals are
    kept: otherwise the refiner could learn to know anomalies by their rounding.

    Args:
        network: standardises coarse features, if its standardisation is set.
        backbone: the network's, folded.
        images: [B, H, W, 3] uint8 at input size, on the network's device.

    Returns:
        coarse float32 and fine float16, on the network's device.
    """
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        features = network.fuse(backbone(images))
    return Features(features.coarse.float(), features.fine.half())


def embed_cached(
    network: Network, images: NDArray[np.uint8], *, cache_dir: Path | None, progress: bool
) -> Features:
    """Raw features of images, from the cache if it holds the features of these very images.

    An entry is a folder, named by a digest of everything that features depend on. The entries used last
    are kept, the others deleted.

    Args:
        network: whose standardisation is off (zero mean, unit deviation).
        images: [n, H, W, 3] uint8 at input size.
        cache_dir: folder of the cache; None for no cache.
        progress: whether to show a bar.

    Returns:
        coarse float32 and fine float16, on the CPU, memory-mapped from the cache if there is one.

    Raises:
        DataError: if the cache cannot be written.
    """
    parts = _embed_parts(network, images, progress=progress)
    if cache_dir is None:
        arrays = [np.concatenate(one) for one in zip(*parts, strict=True)]
        return Features(*map(torch.from_numpy, arrays))
    entry = cache_dir / _name_entry(network, images)
    files = [entry / "coarse.npy", entry / "fine.npy"]
    try:
        found = _read_arrays(files, count=len(images))
        if found is None:
            _write_arrays(files, parts, count=len(images))
            found = _read_arrays(files, count=len(images))
        else:
            log.info("features of %d normal images are cached", len(images))
        os.utime(entry)
        keep_newest(cache_dir, _KEPT_ENTRIES)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{cache_dir}: cannot keep features: {reason}", path=cache_dir) from error
    assert found is not None
    return Features(*map(torch.from_numpy, found))


def _name_entry(network: Network, images: NDArray[np.uint8]) -> str:
    """Digest of everything that features depend on: code, libraries, weights, settings, device, images."""
    facts = (
        hash_code("model", libraries=("timm", "torch")),
        hash_backbone(network.backbone),
        network.params.model_dump_json(),
        network.coarse_mean.device.type,
        images.shape,
    )
    key = hashlib.sha256(repr(facts).encode())
    key.update(np.ascontiguousarray(images).data)
    return key.hexdigest()[:32]


def _embed_parts(
    network: Network, images: NDArray[np.uint8], *, progress: bool
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float16]]]:
    """Coarse and fine features of a few images at a time, [b, C, h, w] each, C-contiguous.

    Sums over another layout differ in their last bits.
    """
    backbone = fold_backbone(network)
    device = network.coarse_mean.device
    starts = range(0, len(images), _EMBED_BATCH)
    for start in tqdm(starts, desc="features", disable=not progress, unit="batch"):
        batch = torch.from_numpy(images[start : start + _EMBED_BATCH].copy())
        embedded = embed_images(network, backbone, batch.to(device))
        coarse, fine = embedded.coarse.cpu(), embedded.fine.cpu()
        yield np.ascontiguousarray(coarse.numpy()), np.ascontiguousarray(fine.numpy())


def _read_arrays(files: Sequence[Path], *, count: int) -> list[NDArray[Any]] | None:
    """Arrays of `count` rows, mapped copy-on-write; None if one is missing or damaged."""
    try:
        arrays = [np.load(file, mmap_mode="c", allow_pickle=False) for file in files]
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return arrays if all(len(array) == count for array in arrays) else None


def _write_arrays(
    files: Sequence[Path], parts: Iterable[tuple[NDArray[Any], ...]], *, count: int
) -> None:
    """Write arrays of `count` rows part by part, each file whole or not at all, as `np.save` would."""
    with ExitStack() as stack:
        drafts = [stack.enter_context(write_whole(file)) for file in files]
        with ExitStack() as opened:
            streams = [opened.enter_context(draft.open("wb")) for draft in drafts]
            for number, arrays in enumerate(parts):
                for stream, array in zip(streams, arrays, strict=True):
                    if number == 0:
                        header = np.lib.format.header_data_from_array_1_0(array)
                        header["shape"] = (count, *array.shape[1:])
                        np.lib.format.write_array_header_1_0(stream, header)
                    stream.write(array.data)


def _take(features: Tensor, indices: NDArray[np.intp]) -> Tensor:
    """Rows of features; no copy is made where they follow each other, as those of a category do."""
    first, last = int(indices[0]), int(indices[-1])
    if last - first + 1 == len(indices):
        return features[first : last + 1]
    return features[torch.from_numpy(indices)]


def _check_finite(features: Features, names: Sequence[str]) -> None:
    finite = torch.stack(
        [
            torch.cat([part.isfinite().flatten(1).all(1) for part in one.split(_EMBED_BATCH)])
            for one in (features.coarse, features.fine)
        ]
    )
    bad = (~finite.all(0)).nonzero()[:, 0]
    if len(bad):
        raise DivergedError(
            f"features of {len(bad)} of {len(names)} normal images are not finite, "
            f"first {describe(names, bad[:4])}; check model.weights"
        )


class Batch(NamedTuple):
    """Data for `B` normal images and as many synthetic anomalies.

    Attributes:
        indices: [B] int64, of the normal images.
        prompts: [B] int64, of the images that prompt them.
        anomalous: [B, H, W, 3] uint8.
        masks: [B, H, W] bool.
        seeds: [B] int64, roots of each sample's further noise.
    """

    indices: Tensor
    prompts: Tensor
    anomalous: Tensor
    masks: Tensor
    seeds: Tensor


class BatchPlan(Dataset[Batch]):
    """Item `i` is the `i`-th batch of this process; an optimiser step takes `accumulate_steps` of them.

    A sample is a function of the seed, the step and its place in the step's whole batch alone: a training
    that resumes goes on with the very same samples, and however many processes or accumulated batches
    share a step, they see the same as one process with one big batch.

    Args:
        data: the training set.
        synthesizer: draws the anomalies.
        batch_size: `B`, on each device.
        seed: root of every choice.
        prompt_choice: `random` or `nearest` image of the category, never the image itself.
        rank: of this process among `world_size`.
        world_size: processes that train together.
        accumulate_steps: batches of each process in an optimiser step.
    """

    def __init__(
        self,
        data: TrainingSet,
        synthesizer: Synthesizer,
        *,
        batch_size: int,
        seed: int,
        prompt_choice: str,
        rank: int = 0,
        world_size: int = 1,
        accumulate_steps: int = 1,
    ) -> None:
        self.data = data
        self.synthesizer = synthesizer
        self.batch_size = batch_size
        self.seed = seed
        self.prompt_choice = prompt_choice
        self.rank = rank
        self.world_size = world_size
        self.accumulate_steps = accumulate_steps
        self._mates = {c: data.list_indices(c) for c in set(data.categories)}

    @property
    def samples_per_step(self) -> int:
        """Normal images of an optimiser step, over all processes and accumulated batches."""
        return self.batch_size * self.world_size * self.accumulate_steps

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in which every normal image is seen once, the last of an epoch overlapping."""
        return -(-len(self.data.images) // self.samples_per_step)

    def __getitem__(self, number: int) -> Batch:
        """The batch of this number, counted from 0."""
        step, part = divmod(number, self.accumulate_steps)
        first = (part * self.world_size + self.rank) * self.batch_size
        return self._draw_batch(step, range(first, first + self.batch_size))

    def _draw_batch(self, step: int, places: Sequence[int]) -> Batch:
        """Samples at some places of a step's whole batch."""
        epoch, offset = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.data.images))
        start = offset * self.samples_per_step
        picks = np.take(order, [start + place for place in places], mode="wrap")
        prompts, images, masks, seeds = [], [], [], []
        for pick, place in zip(picks, places, strict=True):
            rng = np.random.default_rng([self.seed, 2, step, place])
            mates = self._mates[self.data.categories[pick]]
            others = mates[mates != pick] if len(mates) > 1 else mates
            prompts.append(self._choose_prompt(int(pick), others, rng))
            donors = [self.data.images[i] for i in rng.choice(others, min(_DONORS, len(others)))]
            try:
                drawn = self.synthesizer.draw(self.data.images[pick], rng, donors=donors)
            except ParamsError as error:
                raise ParamsError(f"{self.data.names[pick]}: {error}", key=error.key) from error
            images.append(drawn.image)
            masks.append(drawn.mask)
            seeds.append(int(rng.integers(2**62)))
        return Batch(
            torch.tensor(picks),
            torch.tensor(prompts),
            torch.tensor(np.stack(images)),
            torch.tensor(np.stack(masks)),
            torch.tensor(seeds),
        )

    def _choose_prompt(self, pick: int, others: NDArray[np.intp], rng: np.random.Generator) -> int:
        if self.prompt_choice == "random":
            return int(rng.choice(others))
        embeddings = self.data.embeddings
        distances = (embeddings[others] - embeddings[pick]).norm(dim=1)
        return int(others[int(distances.argmin())])


def describe(names: Sequence[str], indices: Tensor) -> str:
    """Names of a batch's images, for a message."""
    return ", ".join(names[int(i)] for i in indices)
