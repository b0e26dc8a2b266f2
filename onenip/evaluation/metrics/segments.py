"""Sorted pixels of one image after another, kept in files and read back in slices of score.

Knows nothing of figures: it promises that pixels come back sorted, in bounded memory.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onenip.errors import DataError

Keys = NDArray[np.uint32]  # scores of normal pixels, as integers of the same order
Marks = NDArray[np.uint64]  # defective pixels: the key above, the size of its region in px below
Cuts = NDArray[np.uint32]

KEY_BITS = np.uint64(32)
_SIZE_MASK = np.uint64(0xFFFFFFFF)
_SAMPLE_STEP = 2048  # every 2048th pixel stays in memory, to choose where to cut


@dataclass(frozen=True)
class Segment:
    """One image's sorted pixels in its shard's two files.

    Attributes:
        normal_start: position of its first normal pixel.
        normal: number of its normal pixels.
        defective_start: position of its first defective pixel.
        defective: number of its defective pixels.
        regions: number of its connected defective regions, 8-connected.
        sample: [s] uint32, keys of every 2048th pixel.
    """

    normal_start: int
    normal: int
    defective_start: int
    defective: int
    regions: int
    sample: Keys


class Shard:
    """Files with the sorted pixels of some images; they go when the shard goes.

    Args:
        parent: folder to make them in; None is the system's folder for temporary files.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent
        self._folder: Path | None = None
        self.segments: list[Segment] = []

    def append(self, normal: Keys, defective: Marks, *, regions: int) -> None:
        """Write one image's sorted pixels behind the others.

        Raises:
            DataError: if they cannot be written.
        """
        try:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="pixels-", dir=self._parent))
                weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            for path, pixels in zip(self.paths, (normal.data, defective.data), strict=True):
                with path.open("ab") as file:
                    file.write(pixels)
        except OSError as error:
            folder = self._folder or self._parent
            raise DataError(f"{folder}: cannot keep pixel scores: {error}", path=folder) from error
        last = self.segments[-1] if self.segments else Segment(0, 0, 0, 0, 0, normal[:0])
        self.segments.append(
            Segment(
                normal_start=last.normal_start + last.normal,
                normal=normal.size,
                defective_start=last.defective_start + last.defective,
                defective=defective.size,
                regions=regions,
                sample=np.concatenate([_sample(normal), _to_keys(_sample(defective))]),
            )
        )

    @property
    def paths(self) -> tuple[Path, Path]:
        """Files of normal and of defective pixels; there once an image was appended."""
        assert self._folder is not None
        return self._folder / "normal", self._folder / "defective"

    def read(self) -> Iterator[tuple[Keys, Marks]]:
        """Each image's sorted pixels, in the order of `segments`."""
        if not self.segments:
            return
        with self.paths[0].open("rb") as normal, self.paths[1].open("rb") as defective:
            for segment in self.segments:
                yield (
                    np.fromfile(normal, np.uint32, segment.normal),
                    np.fromfile(defective, np.uint64, segment.defective),
                )


def read_slices(shards: Sequence[Shard], *, pixels: int) -> Iterator[tuple[Keys, Marks]]:
    """Sorted pixels of all images of several shards, the highest scores first.

    Args:
        shards: where they are.
        pixels: how many to hold at a time, about. A score that more pixels share is a slice of its
            own, whose normal pixels take no memory.
    """
    shards = [shard for shard in shards if shard.segments]
    cuts = _choose_cuts(shards, pixels=pixels)
    bounds = [_find_bounds(shard, cuts) for shard in shards]
    edges = [0, *cuts.tolist(), 1 << 32]
    for index in reversed(range(len(cuts) + 1)):
        is_one_score = edges[index + 1] - edges[index] == 1
        if is_one_score:
            count = sum(int((at[0][:, index + 1] - at[0][:, index]).sum()) for at in bounds)
            normal = np.broadcast_to(np.uint32(edges[index]), count)
        else:
            normal = _gather(shards, [at[0] for at in bounds], index, file=0, dtype=np.uint32)
            normal.sort()
        defective = _gather(shards, [at[1] for at in bounds], index, file=1, dtype=np.uint64)
        defective.sort()
        yield normal, defective


def split_marks(marks: Marks) -> tuple[Keys, NDArray[np.float64]]:
    """Key of each defective pixel, and its share of its region, 1 / (size in px)."""
    return _to_keys(marks), 1.0 / (marks & _SIZE_MASK).astype(np.float64)


def _to_keys(marks: Marks) -> Keys:
    return (marks >> KEY_BITS).astype(np.uint32)


def _sample(pixels: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    return pixels[min(pixels.size, _SAMPLE_STEP) // 2 :: _SAMPLE_STEP].copy()


def _choose_cuts(shards: Sequence[Shard], *, pixels: int) -> Cuts:
    """Ascending keys between which about `pixels` lie."""
    segments = [segment for shard in shards for segment in shard.segments]
    total = sum(segment.normal + segment.defective for segment in segments)
    count = -(-total // pixels)
    if count < 2:
        return np.empty(0, np.uint32)
    sample = np.sort(np.concatenate([segment.sample for segment in segments]))
    cuts = sample[np.arange(1, count) * sample.size // count]
    frequent = cuts[1:][cuts[1:] == cuts[:-1]]  # fills a slice alone: cut behind it too
    behind = frequent[frequent < np.iinfo(np.uint32).max] + np.uint32(1)
    return np.unique(np.concatenate([cuts, behind]))


def _find_bounds(shard: Shard, cuts: Cuts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions [images, slices + 1] of every slice in the two files of a shard."""
    edges = cuts.astype(np.uint64) << KEY_BITS
    rows: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    for segment, (normal, defective) in zip(shard.segments, shard.read(), strict=True):
        parts = (
            (normal, cuts, segment.normal_start, rows[0]),
            (defective, edges, segment.defective_start, rows[1]),
        )
        for values, inner, start, out in parts:
            at = np.searchsorted(values, inner)
            out.append(start + np.concatenate([[0], at, [values.size]]))
    return np.stack(rows[0]), np.stack(rows[1])


def _gather(
    shards: Sequence[Shard],
    bounds: Sequence[NDArray[np.int64]],
    index: int,
    *,
    file: int,
    dtype: type[np.unsignedinteger],
) -> NDArray[np.unsignedinteger]:
    """One slice of one kind of pixel, read from every segment of every shard; not sorted."""
    total = sum(int((at[:, index + 1] - at[:, index]).sum()) for at in bounds)
    pixels = np.empty(total, dtype=dtype)
    view, size, filled = pixels.view(np.uint8).data, pixels.itemsize, 0
    for shard, at in zip(shards, bounds, strict=True):
        with shard.paths[file].open("rb") as stream:
            for start, stop in at[:, index : index + 2].tolist():
                end = filled + (stop - start) * size
                if stop > start:
                    read = os.preadv(stream.fileno(), [view[filled:end]], start * size)
                    assert read == end - filled, (read, end - filled)
                filled = end
    return pixels
