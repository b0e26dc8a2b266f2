"""Images at model size: decoded and resized once each, then read from the cache one at a time.

The same pixels as `load_image` and `resize_image` give. The cache is keyed by content, code and libraries, so
that a changed image is another entry.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from onenip.data.cache import Cache
from onenip.data.manifest import Sample, format_range
from onenip.images import resize_image
from onenip.version import hash_code

_DECODED_TOGETHER = 256  # images: what is planned of a million takes no memory


def count_cores() -> int:
    """Processor cores that this process may use; on systems without such limits, all."""
    read_affinity = getattr(os, "sched_getaffinity", None)
    return len(read_affinity(0)) if read_affinity else os.cpu_count() or 1


class ResizedImages:
    """Images of samples, [H, W, 3] uint8, RGB, each read when it is asked for.

    Args:
        samples: in this order.
        sizes: (H, W) in px by category.
        cache: where resized images are kept.
    """

    def __init__(
        self, samples: Sequence[Sample], sizes: Mapping[str, tuple[int, int]], cache: Cache
    ) -> None:
        self.samples = samples
        self.sizes = sizes
        self._cache = cache
        self._code = hash_code("images.py", libraries=("numpy", "pillow"))[:16]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """One image.

        Raises:
            ImageError: if it cannot be used.
            DataError: if the cache cannot be written.
        """
        return self.load(self.samples[index])

    def load(self, sample: Sample) -> NDArray[np.uint8]:
        """Image of a sample of one of the categories; raises as indexing does."""
        size = self.sizes[sample.category]
        own = format_range(sample.sample_range).replace(" ", "-")
        arrays = self._cache.get(
            f"images/{size[0]}x{size[1]}-{self._code}",
            f"{sample.sha256}{own and '-'}{own}",
            lambda: {"image": np.ascontiguousarray(resize_image(sample.load_image(), size))},
        )
        image: NDArray[np.uint8] = arrays["image"]
        return image

    def prepare(self, *, workers: int, progress: bool) -> None:
        """Decode what is not in the cache yet.

        Args:
            workers: images decoded at once.
            progress: whether to show a bar.

        Raises:
            ImageError: naming the first image that cannot be used.
            DataError: if the cache cannot be written.
        """
        with (
            ThreadPoolExecutor(max(workers, 1)) as pool,
            tqdm(total=len(self), desc="images", disable=not progress, unit="image") as bar,
        ):
            for start in range(0, len(self), _DECODED_TOGETHER):
                chunk = range(start, min(start + _DECODED_TOGETHER, len(self)))
                for _ in pool.map(lambda index: self[index].size, chunk):
                    bar.update()
