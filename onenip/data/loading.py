"""Decoding and resizing many images, in parallel, and keeping them at model size.

Gives the same pixels as `load_image` and `resize_image` one by one. The cache is keyed by content, code and
libraries, so a changed image is another entry; a damaged entry is made anew.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from onenip.data.manifest import Sample, format_range
from onenip.folders import keep_newest, write_whole
from onenip.images import resize_image
from onenip.version import hash_code

_KEPT_FOLDERS = 6  # of the cache: an input size and a state of the code each


def count_cores() -> int:
    """Processor cores that this process may use; on systems without such limits, all."""
    read_affinity = getattr(os, "sched_getaffinity", None)
    return len(read_affinity(0)) if read_affinity else os.cpu_count() or 1


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

    Raises:
        ImageError: naming the first image that cannot be used.
        OSError: if the cache cannot be written.
    """
    folder = None
    if cache_dir is not None:
        code = hash_code("images.py", libraries=("numpy", "pillow"))
        folder = cache_dir / f"{size[0]}x{size[1]}-{code[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        keep_newest(cache_dir, _KEPT_FOLDERS)
    images = np.empty((len(samples), *size, 3), np.uint8)

    def load(index: int) -> None:
        images[index] = _load_one(samples[index], size, folder)

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        done = pool.map(load, range(len(samples)))
        for _ in tqdm(done, total=len(samples), desc="images", disable=not progress, unit="image"):
            pass
    return images


def load_zoomed(
    samples: Sequence[Sample],
    sizes: Mapping[str, tuple[int, int]],
    *,
    cache_dir: Path | None,
    workers: int,
    progress: bool,
) -> list[NDArray[np.uint8]]:
    """Images at the size (H, W) of their category, [H, W, 3] uint8 each, otherwise as `load_resized`."""
    images: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)] * len(samples)
    for size in sorted(set(sizes.values())):
        rows = [i for i, sample in enumerate(samples) if sizes[sample.category] == size]
        own = [samples[i] for i in rows]
        if not own:
            continue
        loaded = load_resized(own, size, cache_dir=cache_dir, workers=workers, progress=progress)
        for i, image in zip(rows, loaded, strict=True):
            images[i] = image
    return images


def _load_one(sample: Sample, size: tuple[int, int], folder: Path | None) -> NDArray[np.uint8]:
    if folder is None:
        return resize_image(sample.load_image(), size)
    own = format_range(sample.sample_range).replace(" ", "-")
    file = folder / f"{sample.sha256}{own and '-'}{own}.npy"
    image = _read(file, size)
    if image is None:
        image = resize_image(sample.load_image(), size)
        with write_whole(file) as draft:
            np.save(draft, image)
    return image


def _read(file: Path, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """A cached image, or None if there is none, or a damaged one."""
    try:
        image = np.load(file, allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    fits = image.shape == (*size, 3) and image.dtype == np.uint8
    return image if fits else None
