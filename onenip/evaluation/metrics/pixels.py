"""`PixelScores`: exact pixel figures of any number of maps in a fixed amount of memory.

Each map is sorted and kept in a file. At the end the range of scores is cut into slices of bounded
size; a slice is gathered from all images, sorted and counted. Nothing is rounded or binned, and the
order of the images, or how they are spread over shards, changes no bit of the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from onenip.errors import DataError
from onenip.evaluation.metrics.areas import Areas, Block, undefined_areas
from onenip.evaluation.metrics.figures import Figure
from onenip.evaluation.metrics.segments import (
    KEY_BITS,
    Keys,
    Marks,
    Segment,
    Shard,
    read_slices,
    split_marks,
)

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=np.int8)
_SLICE_PIXELS = 8_000_000
_SIGN = np.uint32(1 << 31)


class PixelScores:
    """Scores of pixels, one map at a time, and the exact figures of all of them.

    Args:
        parent: folder for temporary files, 4 bytes a normal and 8 bytes a defective pixel; None is
            the system's.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self._own = Shard(parent)
        self._shards: list[Shard] = [self._own]
        self._fault = ""  # why nothing is defined, whatever else there is

    @classmethod
    def merged(cls, *parts: PixelScores) -> Self:
        """Several shards together, none of them copied; the parts stay usable."""
        merged = cls()
        merged._shards = [shard for part in parts for shard in part._shards]
        merged._fault = next((part._fault for part in parts if part._fault), "")
        return merged

    def update(self, score_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        """Add one image.

        A map with a value that is not finite makes every pixel figure undefined.

        Args:
            score_map: [H, W] float32, higher is more anomalous.
            mask: [H, W] bool, True where defective; all False for a good image.

        Raises:
            DataError: if the two differ in shape, or the disk is full.
        """
        if score_map.shape != mask.shape or mask.ndim != 2:
            raise DataError(f"map of shape {score_map.shape} for a mask of shape {mask.shape}")
        if not np.isfinite(score_map).all():
            self._fault = "a map holds a value that is not finite"
            score_map = np.zeros_like(score_map)
        keys = to_keys(score_map)
        if not mask.any():
            self._own.append(np.sort(keys, axis=None), np.empty(0, np.uint64), regions=0)
            return
        labels, regions = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)
        of_pixel = labels[mask]
        sizes = np.bincount(of_pixel).astype(np.uint64)
        marks = (keys[mask].astype(np.uint64) << KEY_BITS) | sizes[of_pixel]
        self._own.append(np.sort(keys[~mask]), np.sort(marks), regions=int(regions))

    @property
    def segments(self) -> list[Segment]:
        """How many pixels and regions each image has, in the order they were added."""
        return [segment for shard in self._shards for segment in shard.segments]

    @property
    def reason(self) -> str:
        """Why no pixel figure is defined; empty if they are."""
        if self._fault:
            return self._fault
        segments = self.segments
        if not segments:
            return "no images with a known mask"
        if not any(segment.defective for segment in segments):
            return "no defective pixels"
        if not any(segment.normal for segment in segments):
            return "no normal pixels"
        return ""

    def compute(self) -> dict[str, Figure]:
        """Pixel AUROC, AP, F1-max; AUPRO up to 30 % (`aupro`) and 5 % (`aupro_05`)."""
        if self.reason:
            return undefined_areas(self.reason)
        segments = self.segments
        areas = Areas(
            normal=sum(segment.normal for segment in segments),
            defective=sum(segment.defective for segment in segments),
            regions=sum(segment.regions for segment in segments),
        )
        above = 0
        for normal, defective in self.slices():
            areas.add(_count(normal, defective, above=above))
            above += normal.size
        return areas.compute()

    def read(self) -> Iterator[tuple[Keys, Marks]]:
        """Each image's sorted pixels, in the order of `segments`."""
        for shard in self._shards:
            yield from shard.read()

    def slices(self) -> Iterator[tuple[Keys, Marks]]:
        """Sorted normal and defective pixels of all images together, the highest scores first."""
        return read_slices(self._shards, pixels=_SLICE_PIXELS)


def to_keys(values: NDArray[np.float32]) -> Keys:
    """Integers in the same order as finite scores, and equal where those are (0.0 is -0.0)."""
    bits = (np.ascontiguousarray(values, dtype=np.float32) + np.float32(0)).view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _count(normal: Keys, defective: Marks, *, above: int) -> Block:
    """Counts of a slice, highest first; `above` normal pixels lie in the slices before it."""
    keys, shares = split_marks(defective)
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: keys.size])
    distinct = keys[first]
    if normal.size and normal[0] == normal[-1]:
        lower = np.where(distinct > normal[0], normal.size, 0)
        not_higher = np.where(distinct >= normal[0], normal.size, 0)
    else:
        lower = np.searchsorted(normal, distinct, side="left")
        not_higher = np.searchsorted(normal, distinct, side="right")
    coverage = np.add.reduceat(shares, first) if first.size else np.empty(0)
    return Block(
        above=(above + normal.size - not_higher)[::-1],
        at_least=(above + normal.size - lower)[::-1],
        defective=np.diff(np.append(first, keys.size))[::-1],
        coverage=coverage[::-1],
    )
