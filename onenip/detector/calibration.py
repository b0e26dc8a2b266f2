"""Prompts, statistics, score scales and thresholds of a category, all from normal training images.

Test data have no part in any of this; the results are stored in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onenip.detector.category import (
    NONE_EXCLUDED,
    CategoryState,
    Excluded,
    draw_fused,
    draw_maps,
    embed_globally,
)
from onenip.detector.embedding import Lazy
from onenip.detector.scoring import Fusion, measure_scale, score_maps
from onenip.detector.thresholds import find_outliers
from onenip.detector.zoom import choose_zoom
from onenip.errors import DataError
from onenip.images import resize_image
from onenip.model.file import CategoryMeasurements, MapScale
from onenip.model.memory import select_coreset
from onenip.model.network import CategoryStatistics, Features, Network
from onenip.params import CalibrateParams

MIN_CALIBRATION_IMAGES = 4  # held-out normals; with fewer, fitted ones join them
MAX_CALIBRATION_IMAGES = 200  # more cost time and change little

_CORESET_TOKENS = 100_000  # upper limit of the tokens that a memory is chosen from
_SHIFTS = ((3, 0), (-3, 0), (0, 3), (0, -3))  # px, of the copies of a single normal image


@dataclass(frozen=True)
class CalibrationImage:
    """One image to calibrate on; its features are read when they are needed.

    Attributes:
        load: gives its features, a batch of one.
        excluded: memory tokens that come from this very image.
        state: of the category with other prompts, where this very image is one; None for its own.
        is_fitted: whether training has seen it.
    """

    load: Callable[[], Features]
    excluded: Excluded = NONE_EXCLUDED
    state: CategoryState | None = None
    is_fitted: bool = False

    @classmethod
    def of(cls, features: Features) -> CalibrationImage:
        """An image whose features stay in memory."""
        return cls(lambda: features)


def choose_prompts(embeddings: Tensor, *, count: int) -> list[int]:
    """Indices of the normal images that represent a category.

    The first is the one nearest to the mean, each further one the farthest from those chosen.

    Args:
        embeddings: [n, C] float, global embeddings of the normal images.
        count: number of prompts; all images where there are fewer.
    """
    picks = [int((embeddings - embeddings.mean(0)).norm(dim=1).argmin())]
    distance = (embeddings - embeddings[picks[0]]).norm(dim=1)
    while len(picks) < min(count, len(embeddings)):
        picks.append(int(distance.argmax()))
        distance = torch.minimum(distance, (embeddings - embeddings[picks[-1]]).norm(dim=1))
    return picks


def measure_statistics(
    network: Network, fine: Sequence[Tensor], *, generator: torch.Generator
) -> tuple[CategoryStatistics, Tensor]:
    """Statistics and memory of a category, and which image each memory token comes from.

    Args:
        network: its params say how tokens are averaged and how many are kept.
        fine: [C, h, w] of each normal image, fine features; float of any width.
        generator: random numbers for the choice of tokens.

    Returns:
        The statistics, and owners [M] int64, indices into the images.
    """
    statistics = CategoryStatistics.measure(fine)
    if not network.uses_memory:
        return statistics, torch.zeros(0, dtype=torch.int64)
    per_image = fine[0].shape[1] * fine[0].shape[2]
    keep = max(min(per_image, _CORESET_TOKENS // len(fine)), 1)
    tokens, owners = [], []
    for i, one in enumerate(fine):
        averaged = network.average_tokens(statistics.standardize(one[None]))[0]  # [N8, C]
        chosen = torch.randperm(per_image, generator=generator)[:keep].sort().values
        tokens.append(averaged[chosen])
        owners.append(torch.full((keep,), i))
    pool, owner = torch.cat(tokens), torch.cat(owners)
    picks = select_coreset(pool, count=network.params.memory_tokens, generator=generator)
    memory = pool[picks].half().float()  # as the model file keeps it
    return statistics.with_memory(memory), owner[picks]


def add_memories(
    network: Network,
    images: Sequence[CalibrationImage],
    *,
    related: NDArray[np.bool_] | None = None,
    generator: torch.Generator,
) -> tuple[CategoryStatistics, list[CalibrationImage]]:
    """Statistics and memories of a category, and its images, each without its own memory tokens.

    Args:
        network: its params say how tokens are averaged and how many are kept.
        images: normal ones, at one zoom.
        related: [n, n] bool, images whose tokens each other may not match; None for no two.
        generator: random numbers for the choice of tokens.
    """
    device = network.coarse_mean.device
    apart = torch.from_numpy(np.eye(len(images), dtype=bool) if related is None else related)
    fine = Lazy(lambda i: images[i].load().fine[0].cpu().half(), len(images))
    statistics, owners = measure_statistics(network, fine, generator=generator)
    excluded = [Excluded(own[owners][None].to(device)) for own in apart]
    if images[0].load().detail is not None:
        details = Lazy(lambda i: _take_detail(images[i]), len(images))
        detail, owners = measure_statistics(network, details, generator=generator)
        statistics = replace(statistics, detail=detail)
        excluded = [
            replace(one, detail=own[owners][None].to(device))
            for one, own in zip(excluded, apart, strict=True)
        ]
    images = [replace(i, excluded=e) for i, e in zip(images, excluded, strict=True)]
    return statistics.to(device), images


@dataclass(frozen=True)
class FusedMaps:
    """Fused maps of calibration images, and the scales that they are fused by.

    Attributes:
        params: rates and rules.
        scales: mean and standard deviation of each kind of map over the normal images.
        fusion_constant: of the paper's rule.
        normals: [1, H, W] float of each normal image.
        anomalies: [1, H, W] float of each synthetic anomaly.
    """

    params: CalibrateParams
    scales: dict[str, MapScale]
    fusion_constant: float
    normals: list[Tensor]
    anomalies: list[Tensor]

    @property
    def fusion(self) -> Fusion:
        """The rule by which the maps were fused."""
        return Fusion(self.params, self.scales, self.fusion_constant)

    @property
    def normal_scores(self) -> list[float]:
        """Image scores of the normal images."""
        return self.score(self.normals)

    @property
    def anomaly_scores(self) -> list[float]:
        """Image scores of the synthetic anomalies."""
        return self.score(self.anomalies)

    def score(self, fused: Sequence[Tensor]) -> list[float]:
        """Image scores of fused maps [1, H, W]."""
        return [float(score_maps(one, self.params)) for one in fused]


def fuse_calibration_maps(
    network: Network,
    params: CalibrateParams,
    *,
    state: CategoryState,
    normals: Sequence[CalibrationImage],
    anomalies: Sequence[CalibrationImage],
) -> FusedMaps:
    """Fused maps of a category's calibration images.

    Scales and the fusion constant come from normals that nothing was fitted to, if there are enough.

    Args:
        network: trained.
        params: rates and rules.
        state: the category's prompts and statistics.
        normals: normal images.
        anomalies: synthetic anomalies made from normal images.
    """
    own = [_draw(network, state, image) for image in normals]
    wrong = [_draw(network, state, image) for image in anomalies]
    unseen = [maps for maps, image in zip(own, normals, strict=True) if not image.is_fitted]
    usual = unseen if len(unseen) >= MIN_CALIBRATION_IMAGES else own
    restoration = torch.cat([maps["restoration"] for maps in usual + wrong])
    empty = FusedMaps(
        params=params,
        scales={kind: measure_scale(torch.cat([maps[kind] for maps in usual])) for kind in own[0]},
        fusion_constant=float(restoration.max() + restoration.min()) / 2,
        normals=[],
        anomalies=[],
    )
    return replace(
        empty,
        normals=[empty.fusion.fuse(maps) for maps in own],
        anomalies=[empty.fusion.fuse(maps) for maps in wrong],
    )


def measure_category(
    network: Network,
    params: CalibrateParams,
    *,
    state: CategoryState,
    normals: Sequence[CalibrationImage],
    anomalies: Sequence[CalibrationImage],
    names: Sequence[str],
    prompt_names: list[str],
    zoom: int,
    is_provisional: bool,
) -> CategoryMeasurements:
    """Scales and scores of a category, from which its thresholds follow.

    Args:
        network: trained.
        params: rates and rules.
        state: the category's prompts and statistics.
        normals: normal images, those that nothing was fitted to first.
        anomalies: synthetic anomalies made from normal images.
        names: of the normal images, to be recorded; fewer where the images are copies of these.
        prompt_names: file names of the prompts, to be recorded.
        zoom: at which the images are looked at, to be recorded.
        is_provisional: whether the category was added without training.

    Raises:
        DataError: if there are no normals.
    """
    if not normals:
        raise DataError("a category cannot be calibrated without normal images")
    fused = fuse_calibration_maps(
        network,
        params,
        state=state,
        normals=normals,
        anomalies=anomalies[:MAX_CALIBRATION_IMAGES],
    )
    prompts = [_embed(network, image.numpy()) for image in state.prompts.cpu()]
    prompt_maps = [draw_fused(network, image, state, fused.fusion)[0] for image in prompts]
    unseen = sum(not image.is_fitted for image in normals)
    scores = fused.normal_scores
    return CategoryMeasurements(
        scales=fused.scales,
        fusion_constant=fused.fusion_constant,
        pixel_threshold=measure_pixel_threshold(fused, unseen),
        normal_names=list(names),
        held_out_scores=scores[:unseen],
        fitted_scores=scores[unseen:],
        synthetic_scores=fused.anomaly_scores,
        prompt_names=prompt_names,
        prompt_scores=fused.score(prompt_maps),
        zoom=zoom,
        is_provisional=is_provisional,
    )


def measure_pixel_threshold(fused: FusedMaps, unseen: int) -> float:
    """Value that `pixel_false_alarm_rate` of the pixels of normal images lie above.

    Args:
        fused: maps.
        unseen: how many normals, the first ones, nothing was fitted to; they decide if there are enough.
    """
    count = unseen if unseen >= MIN_CALIBRATION_IMAGES else len(fused.normals)
    scores = np.array(fused.normal_scores[:count])
    usual = ~find_outliers(scores)
    pixels = torch.cat([one for one, keep in zip(fused.normals, usual, strict=False) if keep])
    return float(np.quantile(pixels.cpu().numpy(), 1 - fused.params.pixel_false_alarm_rate))


def calibrate_given(
    network: Network,
    params: CalibrateParams,
    images: Sequence[NDArray[np.uint8]],
    *,
    siblings: NDArray[np.bool_] | None = None,
) -> tuple[CategoryState, CategoryMeasurements]:
    """State and measurements of a category that is added without training.

    Args:
        network: trained on others.
        params: rates and rules.
        images: normal images [H, W, 3] uint8, at least one; none is judged by its own prompt or memory
            tokens, but a single one, whose spread is that of shifted copies.
        siblings: [n, n] bool, images that show the same thing in part, such as tiles of one photograph,
            and do not judge each other either; each is its own. None if no two are.
    """
    with torch.inference_mode():
        zoom = choose_zoom(((len(image), len(image[0])) for image in images), network.params)
        resized = [resize_image(image, network.params.zoomed_size(zoom)) for image in images]
        related = np.eye(len(images), dtype=bool) if siblings is None else siblings
        statistics, given = add_memories(
            network,
            [CalibrationImage.of(_embed(network, image)) for image in resized],
            related=related,
            generator=torch.Generator().manual_seed(0),
        )
        small = [resize_image(image, network.params.input_size) for image in images]
        coarse = torch.cat([_embed(network, image).coarse for image in small])
        embeddings, encoded = embed_globally(coarse), network.encode(coarse)

        def build(picks: list[int]) -> CategoryState:
            prompts = torch.tensor(np.stack([small[i] for i in picks]))
            return CategoryState(prompts, encoded[picks], embeddings[picks], statistics)

        picks = choose_prompts(embeddings, count=params.prompts)
        state = build(picks)
        if related.all():  # nobody else is there to judge by
            shifted = [np.roll(one, shift, axis=(0, 1)) for one in resized for shift in _SHIFTS]
            normals = [
                CalibrationImage.of(_embed(network, one))
                for one in shifted[:MAX_CALIBRATION_IMAGES]
            ]
        else:
            normals = []
            for image, mine in zip(given[:MAX_CALIBRATION_IMAGES], related, strict=False):
                others = np.flatnonzero(~mine)
                instead = None
                if mine[picks].any() and len(others):
                    chosen = choose_prompts(embeddings[others], count=params.prompts)
                    instead = build([int(others[i]) for i in chosen])
                normals.append(replace(image, state=instead))
        known = measure_category(
            network,
            params,
            state=state,
            normals=normals,
            anomalies=[],
            names=[f"given {i}" for i in range(len(images))][:MAX_CALIBRATION_IMAGES],
            prompt_names=[f"given {i}" for i in picks],
            zoom=zoom,
            is_provisional=True,
        )
    return state, known


def _take_detail(image: CalibrationImage) -> Tensor:
    detail = image.load().detail
    assert detail is not None
    return detail[0].cpu().half()


def _draw(network: Network, state: CategoryState, image: CalibrationImage) -> dict[str, Tensor]:
    return draw_maps(network, image.load(), image.state or state, excluded=image.excluded)


def _embed(network: Network, image: NDArray[np.uint8]) -> Features:
    return network.embed(torch.tensor(image)[None].to(network.coarse_mean.device))
