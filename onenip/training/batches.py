"""Training batches: normal images with cached features, anomalies, prompts.

The backbone is frozen, so features of a normal image are computed once, by whoever needs them first. Images
and features are read as they are drawn: memory does not grow with the number of images.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from onenip.data.cache import Cache
from onenip.data.loading import ResizedImages, count_cores
from onenip.data.manifest import Sample, format_range, list_categories
from onenip.detector.calibration import measure_statistics
from onenip.detector.category import embed_globally
from onenip.detector.embedding import Embedder, Lazy
from onenip.errors import DivergedError, ParamsError
from onenip.images import load_mask, resize_image, resize_mask
from onenip.model.features import Backbone
from onenip.model.network import CategoryStatistics, Features, Match, Network
from onenip.synthesis.anomalies import Synthesizer, SyntheticAnomaly

MAX_MEASURED = 2000  # images of a category that its statistics, memory and prompts come from
_KEPT_MATCHES = 20_000  # images whose matches stay in memory, 9 KB each
_REAL_SHARE = 0.25  # of a category's anomalies, where it has real defects: each is often seen
_DONORS = 2  # further images of the category that a synthetic anomaly may take patches from

log = logging.getLogger(__name__)


class TrainingSet:
    """Normal images to fit to, and what is measured of them once; see `build_training_set`.

    Attributes:
        images: at input size.
        names: [n] of the images, for messages.
        categories: [n] name of each image's category.
        digests: [n] sha256 of the images' files, and the ranges that they are read over.
        embedder: of their features.
        cache: of images and features.
        measured: by category, indices of the images that statistics, memory and prompts come from.
        embeddings: by category, [m, C] float of those images, global.
        statistics: by category.
        owners: by category, the index of the image that each memory token comes from.
    """

    def __init__(self, network: Network, samples: Sequence[Sample], cache: Cache) -> None:
        self.names = [sample.name for sample in samples]
        self.categories = [sample.category for sample in samples]
        self.digests = [f"{s.sha256} {format_range(s.sample_range)}" for s in samples]
        size = network.params.input_size
        self.images = ResizedImages(samples, dict.fromkeys(self.categories, size), cache)
        self.cache = cache
        self.embedder = Embedder(network, cache)
        self.measured: dict[str, NDArray[np.intp]] = {}
        self.embeddings: dict[str, Tensor] = {}
        self.statistics: dict[str, CategoryStatistics] = {}
        self.owners: dict[str, Tensor] = {}
        self._network = network
        self._matches: dict[int, Match] = {}

    def list_indices(self, category: str) -> NDArray[np.intp]:
        """Indices of a category's images."""
        return np.flatnonzero(np.array(self.categories) == category)

    def features(self, index: int) -> Features:
        """Raw features of an image: a batch of one, float32, on the CPU."""
        return self.embedder.embed(self.images[index])

    def fine(self, index: int) -> Tensor:
        """Fine features [1, C, h, w] of an image, rounded to float16, as training takes them."""
        return self.features(index).fine.half()

    def match(self, index: int) -> Match:
        """Nearest memory tokens of other images of the category, [1, N8] each."""
        if index not in self._matches:
            category = self.categories[index]
            statistics = self.statistics[category]
            tokens = self._network.average_tokens(statistics.standardize(self.fine(index)))
            excluded = (self.owners[category] == index)[None]
            if len(self._matches) == _KEPT_MATCHES:
                del self._matches[next(iter(self._matches))]
            self._matches[index] = self._network.match(tokens, statistics.memory, excluded=excluded)
        return self._matches[index]


def build_training_set(
    network: Network,
    samples: Sequence[Sample],
    *,
    seed: int,
    cache: Cache,
    progress: bool,
    limit: int | None = MAX_MEASURED,
    embeds_all: bool = True,
) -> TrainingSet:
    """Images with their features and what is measured of them; sets the network's standardisation.

    Args:
        network: with its backbone's weights; its `coarse_mean` and `coarse_std` are set.
        samples: normal images.
        seed: root of the memories' choice.
        cache: of images and features.
        progress: whether to show bars.
        limit: images of a category, those of the lowest digests, that its statistics, memory and prompts come
            from; None for all.
        embeds_all: whether to compute now what else will be drawn; if not, it is done as it is drawn.

    Raises:
        DivergedError: if features are not finite, naming the images.
    """
    data = TrainingSet(network, samples, cache)
    for category in list_categories(samples):
        own = data.list_indices(category)
        first = sorted(own, key=lambda i: data.digests[i])[:limit]
        data.measured[category] = np.array(sorted(first))
    measured = np.concatenate(list(data.measured.values()))
    _embed(data, list(range(len(samples))) if embeds_all else measured.tolist(), progress=progress)
    if network.params.standardize:
        rows = np.sort(measured)
        overall = CategoryStatistics.measure(
            Lazy(lambda i: data.features(rows[i]).coarse[0], len(rows))
        )
        network.coarse_mean.copy_(overall.mean)
        network.coarse_std.copy_(overall.std)
    else:
        network.coarse_mean.zero_()
        network.coarse_std.fill_(1)
    with torch.inference_mode():
        for number, (category, indices) in enumerate(data.measured.items()):
            generator = torch.Generator().manual_seed(seed * 1009 + number)
            statistics, owner = measure_statistics(
                network, _list_fine(data, indices), generator=generator
            )
            data.statistics[category] = statistics
            data.owners[category] = torch.tensor(indices)[owner]
            coarse = (data.features(i).coarse.to(network.coarse_mean.device) for i in indices)
            embeddings = [embed_globally(network.standardize(one)).cpu() for one in coarse]
            data.embeddings[category] = torch.cat(embeddings)
    return data


def embed_images(network: Network, backbone: Backbone, images: Tensor) -> Features:
    """Features of images as a training sees them, whether they are normal or synthetic anomalies.

    In 32 bits also under mixed precision, and fine ones rounded to 16 bits.

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


def _list_fine(data: TrainingSet, indices: NDArray[np.intp]) -> Lazy:
    return Lazy(lambda i: data.fine(int(indices[i]))[0], len(indices))


def _embed(data: TrainingSet, indices: Sequence[int], *, progress: bool) -> None:
    """Have images and features in the cache.

    Raises:
        DivergedError: if some are not finite.
    """
    chosen = [data.images.samples[i] for i in indices]
    ResizedImages(chosen, data.images.sizes, data.cache).prepare(
        workers=count_cores(), progress=progress
    )
    bad = []
    before = data.cache.made[data.embedder.kind]
    for index in tqdm(indices, desc="features", disable=not progress, unit="image"):
        found = data.features(index)
        if not (found.coarse.isfinite().all() and found.fine.half().isfinite().all()):
            bad.append(data.names[index])
    if bad:
        raise DivergedError(
            f"features of {len(bad)} of {len(indices)} normal images are not finite, "
            f"first {', '.join(bad[:4])}; check model.weights"
        )
    made = data.cache.made[data.embedder.kind] - before
    log.info("features of %d of %d normal images were computed anew", made, len(indices))


@dataclass(frozen=True)
class RealDefect:
    """A confirmed defect to learn from.

    Attributes:
        category: product category.
        image: [H, W, 3] uint8 at input size.
        mask: [H, W] bool.
    """

    category: str
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]


def load_defects(samples: Iterable[Sample], size: tuple[int, int]) -> list[RealDefect]:
    """Confirmed defects at input size (H, W) in px.

    Those whose mask vanishes at that size are left out.

    Args:
        samples: defects of a manifest, each with a mask.
        size: the input size.

    Raises:
        ImageError: if an image or a mask cannot be read.
    """
    found = []
    for sample in samples:
        assert sample.mask is not None
        mask = resize_mask(load_mask(sample.mask), size)
        if mask.any():
            image = resize_image(sample.load_image(), size)
            found.append(RealDefect(sample.category, image, mask))
        else:
            log.warning("%s: its mask is too small to learn from", sample.name)
    return found


class Batch(NamedTuple):
    """Data for `B` normal images and as many anomalies.

    Attributes:
        indices: [B] int64, of the normal images.
        prompts: [B] int64, of the images that prompt them.
        anomalous: [B, H, W, 3] uint8.
        masks: [B, H, W] bool.
        is_real: [B] bool, of real defects; the others are synthetic anomalies of the normal images.
        seeds: [B] int64, roots of each sample's further noise.
    """

    indices: Tensor
    prompts: Tensor
    anomalous: Tensor
    masks: Tensor
    is_real: Tensor
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
        defects: confirmed ones, which take the place of a quarter of their category's synthetic anomalies.
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
        defects: Sequence[RealDefect] = (),
    ) -> None:
        self.data = data
        self.synthesizer = synthesizer
        self.batch_size = batch_size
        self.seed = seed
        self.prompt_choice = prompt_choice
        self.rank = rank
        self.world_size = world_size
        self.accumulate_steps = accumulate_steps
        self.defects = defects
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
        prompts, images, masks, are_real, seeds = [], [], [], [], []
        for pick, place in zip(picks, places, strict=True):
            rng = np.random.default_rng([self.seed, 2, step, place])
            mates = self._mates[self.data.categories[pick]]
            others = mates[mates != pick] if len(mates) > 1 else mates
            prompts.append(self._choose_prompt(int(pick), others, rng))
            real = [one for one in self.defects if one.category == self.data.categories[pick]]
            are_real.append(bool(real) and rng.random() < _REAL_SHARE)
            drawn: RealDefect | SyntheticAnomaly
            if are_real[-1]:
                drawn = real[int(rng.integers(len(real)))]
            else:
                drawn = self._draw_synthetic(int(pick), others, rng)
            images.append(drawn.image)
            masks.append(drawn.mask)
            seeds.append(int(rng.integers(2**62)))
        return Batch(
            torch.tensor(picks),
            torch.tensor(prompts),
            torch.tensor(np.stack(images)),
            torch.tensor(np.stack(masks)),
            torch.tensor(are_real),
            torch.tensor(seeds),
        )

    def _draw_synthetic(
        self, pick: int, others: NDArray[np.intp], rng: np.random.Generator
    ) -> SyntheticAnomaly:
        donors = [self.data.images[int(i)] for i in rng.choice(others, min(_DONORS, len(others)))]
        try:
            return self.synthesizer.draw(self.data.images[pick], rng, donors=donors)
        except ParamsError as error:
            raise ParamsError(f"{self.data.names[pick]}: {error}", key=error.key) from error

    def _choose_prompt(self, pick: int, others: NDArray[np.intp], rng: np.random.Generator) -> int:
        if self.prompt_choice == "random":
            return int(rng.choice(others))
        category = self.data.categories[pick]
        measured, embeddings = self.data.measured[category], self.data.embeddings[category]
        distances = (embeddings - embeddings[measured == pick]).norm(dim=1)
        if len(measured) > 1:
            distances[measured == pick] = torch.inf
        return int(measured[int(distances.argmin())])


def describe(names: Sequence[str], indices: Tensor) -> str:
    """Names of a batch's images, for a message."""
    return ", ".join(names[int(i)] for i in indices)
