"""Training batches: normal images with cached features, synthetic anomalies, prompts.

The backbone is frozen, so features of normal images and their nearest memory tokens are computed once.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from onenip.model.network import CategoryStatistics, Features, Match, Network
from onenip.model.weights import hash_backbone
from onenip.synthesis.anomalies import Synthesizer
from onenip.version import hash_code

_EMBED_BATCH = 8
_KEPT_ENTRIES = 6  # of the cache of features: one for each input size of a training
_DONORS = 2  # further images of the category that a synthetic anomaly may take patches from

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSet:
    """Normal images to fit to, and everything computed from them once.

    Attributes:
        images: n of [H, W, 3] uint8, each at the input size of its category's zoom.
        names: [n] of the images, for messages.
        categories: [n] name of each image's category.
        features: n of one image each, coarse float32 [1, C, h, w] and fine float16 [1, C, h8, w8], both raw;
            on disk where they are cached.
        embeddings: [n, C] float, global.
        statistics: by category.
        matches: n of one image each, to the nearest memory tokens of other images; empty without memory.
        owners: by category, the index of the image that each memory token comes from.
    """

    images: Sequence[NDArray[np.uint8]]
    names: list[str]
    categories: list[str]
    features: list[Features]
    embeddings: Tensor
    statistics: dict[str, CategoryStatistics]
    matches: list[Match]
    owners: dict[str, Tensor]

    def list_indices(self, category: str) -> NDArray[np.intp]:
        """Indices of a category's images."""
        return np.flatnonzero(np.array(self.categories) == category)


def build_training_set(
    network: Network,
    images: Sequence[NDArray[np.uint8]],
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
        images: n of [H, W, 3] uint8, each at the input size of its category's zoom.
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
    raw: list[Features] = [Features(torch.empty(0), torch.empty(0))] * len(images)
    for shape in sorted({image.shape for image in images}):
        rows = [i for i, image in enumerate(images) if image.shape == shape]
        group = [images[i] for i in rows]
        embedded = embed_cached(network, group, cache_dir=cache_dir, progress=progress)
        for place, i in enumerate(rows):
            raw[i] = embedded[place : place + 1]
    _check_finite(raw, names)
    if network.params.standardize:
        overall = CategoryStatistics.measure([one.coarse[0] for one in raw])
        network.coarse_mean.copy_(overall.mean)
        network.coarse_std.copy_(overall.std)
    statistics: dict[str, CategoryStatistics] = {}
    owners = {}
    empty = Match(torch.zeros(1, 0), torch.zeros(1, 0, dtype=torch.int64))
    matches = [empty] * len(images)
    with torch.inference_mode():
        for number, category in enumerate(sorted(set(categories))):
            indices = np.flatnonzero(np.array(categories) == category)
            generator = torch.Generator().manual_seed(seed * 1009 + number)
            fine = [raw[i].fine[0] for i in indices]
            own, owner = measure_statistics(network, fine, generator=generator)
            statistics[category], owners[category] = own, torch.tensor(indices)[owner]
            if not network.uses_memory:
                continue
            for index in indices:
                tokens = network.average_tokens(own.standardize(raw[index].fine))
                excluded = (owners[category] == int(index))[None]
                matches[index] = network.match(tokens, own.memory, excluded=excluded)
    return TrainingSet(
        images=images,
        names=names,
        categories=categories,
        features=raw,
        embeddings=torch.cat([embed_globally(network.standardize(one.coarse)) for one in raw]),
        statistics=statistics,
        matches=[Match(one.distance.clone(), one.index.clone()) for one in matches],
        owners=owners,
    )


def embed_images(network: Network, backbone: Backbone, images: Tensor) -> Features:
    """Features of images as a training sees them, whether they are normal or synthetic anomalies.

    In 32 bits also under mixed precision, and fine ones rounded to the 16 bits in which those of normals are
    kept: otherwise the refiner could learn to know anomalies by their rounding.

    Args:
        network: standardises coarse features, if its standardisation is set.
        backbone: the network's, folded.
        images: [B, H, W, 3] uint8 at the input size of a zoom, on the network's device.

    Returns:
        coarse float32 and fine float16, on the network's device.
    """
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        features = network.fuse(backbone(images))
    return Features(features.coarse.float(), features.fine.half())


def embed_cached(
    network: Network,
    images: Sequence[NDArray[np.uint8]],
    *,
    cache_dir: Path | None,
    progress: bool,
) -> Features:
    """Raw features of images of one size, from the cache if it holds the features of these very images.

    An entry is a folder, named by a digest of everything that features depend on. The entries used last
    are kept, the others deleted.

    Args:
        network: whose standardisation is off (zero mean, unit deviation).
        images: n of [H, W, 3] uint8 at the input size of a zoom.
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


def _name_entry(network: Network, images: Sequence[NDArray[np.uint8]]) -> str:
    """Digest of everything that features depend on: code, libraries, weights, settings, device, images."""
    facts = (
        hash_code("model", libraries=("timm", "torch")),
        hash_backbone(network.backbone),
        network.params.model_dump_json(),
        network.coarse_mean.device.type,
        (len(images), *images[0].shape),
    )
    key = hashlib.sha256(repr(facts).encode())
    for image in images:
        key.update(np.ascontiguousarray(image).data)
    return key.hexdigest()[:32]


def _embed_parts(
    network: Network, images: Sequence[NDArray[np.uint8]], *, progress: bool
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float16]]]:
    """Coarse and fine features of a few images at a time, [b, C, h, w] each, C-contiguous.

    Sums over another layout differ in their last bits.
    """
    backbone = fold_backbone(network)
    device = network.coarse_mean.device
    starts = range(0, len(images), _EMBED_BATCH)
    for start in tqdm(starts, desc="features", disable=not progress, unit="batch"):
        batch = torch.from_numpy(np.stack(images[start : start + _EMBED_BATCH]))
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


def _check_finite(features: Sequence[Features], names: Sequence[str]) -> None:
    finite = [bool(f.coarse.isfinite().all() and f.fine.isfinite().all()) for f in features]
    bad = (~torch.tensor(finite)).nonzero()[:, 0]
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
        anomalous: B of [H, W, 3] uint8, each at the input size of its category's zoom.
        masks: [B, H, W] bool, of the windows of the anomalous images, at input size.
        corners: [2B, 2] int64, row and column of the fine token at which the window begins that the refiner
            is trained on, of the normal images, then of the anomalous ones; 0 for images without zoom, of
            which the window is all.
        seeds: [B] int64, roots of each sample's further noise.
    """

    indices: Tensor
    prompts: Tensor
    anomalous: list[Tensor]
    masks: Tensor
    corners: Tensor
    seeds: Tensor


class BatchPlan(Dataset[Batch]):
    """Item `i` is the `i`-th batch of this process; an optimiser step takes `accumulate_steps` of them.

    A sample is a function of the seed, the step and its place in the step's whole batch alone: a training
    that resumes goes on with the very same samples, and however many processes or accumulated batches
    share a step, they see the same as one process with one big batch.

    Args:
        data: the training set.
        synthesizers: draw the anomalies, by input size.
        window: (height, width) in px that the refiner sees of each image: the input size without zoom.
        stride: px of a fine token.
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
        synthesizers: Mapping[tuple[int, int], Synthesizer],
        *,
        window: tuple[int, int],
        stride: int,
        batch_size: int,
        seed: int,
        prompt_choice: str,
        rank: int = 0,
        world_size: int = 1,
        accumulate_steps: int = 1,
    ) -> None:
        self.data = data
        self.synthesizers = synthesizers
        self.window = window
        self.stride = stride
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
        normal_corners, corners = [], []
        for pick, place in zip(picks, places, strict=True):
            rng = np.random.default_rng([self.seed, 2, step, place])
            mates = self._mates[self.data.categories[pick]]
            others = mates[mates != pick] if len(mates) > 1 else mates
            prompts.append(self._choose_prompt(int(pick), others, rng))
            donors = [self.data.images[i] for i in rng.choice(others, min(_DONORS, len(others)))]
            try:
                image = self.data.images[pick]
                synthesizer = self.synthesizers[image.shape[0], image.shape[1]]
                drawn = synthesizer.draw(image, rng, donors=donors)
            except ParamsError as error:
                raise ParamsError(f"{self.data.names[pick]}: {error}", key=error.key) from error
            images.append(torch.from_numpy(drawn.image))
            seeds.append(int(rng.integers(2**62)))
            normal_corners.append(self._choose_corner(None, image, rng))
            corners.append(self._choose_corner(drawn.mask, image, rng))
            top, left = (place * self.stride for place in corners[-1])
            masks.append(drawn.mask[top : top + self.window[0], left : left + self.window[1]])
        return Batch(
            torch.tensor(picks),
            torch.tensor(prompts),
            images,
            torch.tensor(np.stack(masks)),
            torch.tensor(normal_corners + corners),
            torch.tensor(seeds),
        )

    def _choose_corner(
        self, mask: NDArray[np.bool_] | None, image: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[int, int]:
        """Row and column of the first fine token of a window; one around a masked pixel if there are any."""
        around = None if mask is None else rng.choice(np.argwhere(mask))
        corner = []
        for axis in (0, 1):
            last = (image.shape[axis] - self.window[axis]) // self.stride
            if last <= 0:
                corner.append(0)
                continue
            low, high = 0, last
            if around is not None:
                high = min(last, int(around[axis]) // self.stride)
                low = max(0, -(-(int(around[axis]) + 1 - self.window[axis]) // self.stride))
            corner.append(int(rng.integers(min(low, high), high + 1)))
        return corner[0], corner[1]

    def _choose_prompt(self, pick: int, others: NDArray[np.intp], rng: np.random.Generator) -> int:
        if self.prompt_choice == "random":
            return int(rng.choice(others))
        embeddings = self.data.embeddings
        distances = (embeddings[others] - embeddings[pick]).norm(dim=1)
        return int(others[int(distances.argmin())])


def describe(names: Sequence[str], indices: Tensor) -> str:
    """Names of a batch's images, for a message."""
    return ", ".join(names[int(i)] for i in indices)
