"""Likeness of an image to those of a category, by the features of a pretrained backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from onenip.errors import ImageError
from onenip.images import resize_image
from onenip.model.features import Backbone
from onenip.model.weights import load_backbone_weights

_BACKBONE, _LEVELS, _SIDE_PX = "tf_efficientnet_lite2", (0, 1, 2, 3, 4), 224
_MIN_IMAGES = 5  # of a category, from which on its spread is known
_MAX_IMAGES = 64  # of a category that an image is compared with
_QUANTILE, _TIMES = 0.75, 1.6  # see `_is_far`
_ALWAYS_NEAR = 0.5  # distance, 0..2, that other light, another camera or another lot may make


class Likeness:
    """Distances of images from those of a category, the same for every workspace: no params change them.

    Args:
        load: gives the image [H, W, 3] uint8 of a name below the data root, or raises `ImageError`.
    """

    def __init__(self, load: Callable[[str], NDArray[np.uint8]]) -> None:
        self._load = load
        self._embeddings: dict[str, dict[str, NDArray[np.float32] | None]] = {}

    def is_foreign(self, category: str, image: NDArray[np.uint8], names: Sequence[str]) -> bool:
        """Whether an image shows something else; False where a category has too few images to say so.

        Args:
            category: under which embeddings are remembered.
            image: [H, W, 3] uint8.
            names: of the category's images in the data; up to 64 of them are read, once each.
        """
        known = self._embeddings.setdefault(category, {})
        if room := _MAX_IMAGES - len(known):
            for name in _spread([name for name in names if name not in known], room):
                known[name] = self._read(name)
        found = [embedding for embedding in known.values() if embedding is not None]
        return len(found) >= _MIN_IMAGES and _is_far(self._embed(image), np.stack(found))

    def _read(self, name: str) -> NDArray[np.float32] | None:
        try:
            return self._embed(self._load(name))
        except ImageError:  # validation names it
            return None

    def _embed(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Mean features of all levels [C] float32, of length 1."""
        batch = torch.tensor(resize_image(image, (_SIDE_PX, _SIDE_PX)))[None]
        with torch.inference_mode():
            means = torch.cat([level.mean((2, 3)) for level in self._backbone(batch)], dim=1)[0]
        embedding: NDArray[np.float32] = (means / means.norm()).numpy()
        return embedding

    @cached_property
    def _backbone(self) -> Backbone:
        side = (_SIDE_PX, _SIDE_PX)
        backbone = Backbone(name=_BACKBONE, indices=_LEVELS, input_size=side)
        load_backbone_weights(backbone, name=_BACKBONE, weights="package", seed=0)
        return backbone


def _is_far(one: NDArray[np.float32], known: NDArray[np.float32]) -> bool:
    """Whether an embedding [C] is much farther from the nearest of [N, C] than most of these are from theirs.

    Three quarters of them say how far is usual, so that a few strays among them widen nothing.
    """
    nearest = np.linalg.norm(known - one, axis=1).min()
    between = np.linalg.norm(known[:, None] - known[None], axis=2)
    np.fill_diagonal(between, np.inf)
    usual = np.quantile(between.min(axis=1), _QUANTILE)
    return bool(nearest > max(_ALWAYS_NEAR, _TIMES * usual))


def _spread(names: Sequence[str], count: int) -> list[str]:
    """So many of the names, evenly spread."""
    if len(names) <= count:
        return list(names)
    return [names[i] for i in np.linspace(0, len(names) - 1, count, dtype=int)]
