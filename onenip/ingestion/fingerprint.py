"""Images that are in the data already: the same file, the same pixels in another file, or nearly the same."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onenip.data.labels import GOOD
from onenip.data.manifest import format_range, list_placed
from onenip.errors import ImageError
from onenip.images import SampleRange, hash_file, load_image
from onenip.ingestion.journal import Journal
from onenip.ingestion.likeness import Likeness

_SIDE_PX = 32
_MAX_BITS = 4  # of 64 in which the hashes of near-duplicates may differ
_BLOCK_PX = 16  # near-duplicates are compared at their own size, by the means of such blocks
_MAX_COMPARED = 4  # images of the data that one arrival is compared with at full size
_CHUNK = 256

Row = tuple[str, str, str, int, bytes]  # stamp, sha256, hash of pixels, perceptual hash, thumbnail


@dataclass(frozen=True)
class Fingerprint:
    """What an image is recognised by.

    Attributes:
        sha256: of the file's bytes, 64 hex digits.
        pixels: sha256 of size and decoded pixels, 64 hex digits.
        phash: perceptual hash, 64 bits.
        thumbnail: [1024] uint8, grey, 32 by 32 px, row by row.
    """

    sha256: str
    pixels: str
    phash: int
    thumbnail: NDArray[np.uint8]


def take_fingerprint(image: NDArray[np.uint8], sha256: str) -> Fingerprint:
    """Fingerprint of an image [H, W, 3] uint8 whose file has this hash."""
    grey = Image.fromarray(image).convert("L")
    thumbnail = np.asarray(grey.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX), dtype=np.uint8)
    content = hashlib.sha256(str(image.shape).encode())
    content.update(np.ascontiguousarray(image).data)
    return Fingerprint(
        sha256, content.hexdigest(), int(str(imagehash.phash(grey)), 16), thumbnail.ravel()
    )


class KnownImages:
    """Every image under `data/`, of every category and split.

    Args:
        data_dir: the data root.
        journal: where fingerprints are kept, so that only new files are read.
        find_range: gives the range of a category's samples, None where it is not known.
    """

    def __init__(
        self,
        data_dir: Path,
        journal: Journal,
        find_range: Callable[[str], SampleRange | None] = lambda _category: None,
    ) -> None:
        self._data_dir = data_dir
        self._find_range = find_range
        self._by_bytes: dict[str, str] = {}
        self._by_pixels: dict[str, str] = {}
        self._by_category: dict[str, _Gallery] = {}
        self._likeness = Likeness(self._load)
        cached = journal.read_known()
        fresh: dict[str, Row] = {}
        seen = set()
        for image in list_placed(data_dir):
            name = image.name
            seen.add(name)
            found = image.path.stat()
            sample_range = find_range(image.category)
            stamp = f"{found.st_size}-{found.st_mtime_ns}{format_range(sample_range)}"
            row = cached.get(name)
            if row is None or row[0] != stamp:
                row = _read_row(image.path, stamp, sample_range)
                fresh[name] = row
            if len(fresh) >= _CHUNK:
                journal.write_known(fresh)
                fresh = {}
            self._insert(name, row)
        journal.write_known(fresh)
        journal.forget_known(sorted(set(cached) - seen))

    def add(self, name: str, fingerprint: Fingerprint) -> None:
        """Take note of an image that was placed."""
        self._insert(name, _to_row("", fingerprint))

    def find_file(self, sha256: str) -> str | None:
        """Path below the data root of an image with these very bytes, None if there is none."""
        return self._by_bytes.get(sha256)

    def find_same(self, fingerprint: Fingerprint) -> str | None:
        """Path of an image with the same bytes, else with the same pixels, None if there is none."""
        return self.find_file(fingerprint.sha256) or self._by_pixels.get(fingerprint.pixels)

    def find_near(
        self, category: str, image: NDArray[np.uint8], fingerprint: Fingerprint, levels: float
    ) -> str | None:
        """Path of an image of the category that is nearly the same, None if there is none.

        Args:
            category: where to look.
            image: [H, W, 3] uint8.
            fingerprint: of the image.
            levels: 0..255; no channel's mean of any block of 16 px differs by more.
        """
        gallery = self._by_category.get(category)
        for name in gallery.find(fingerprint, levels=levels) if gallery else ():
            try:
                other = self._load(name)
            except ImageError:
                continue
            if _measure_difference(image, other) <= levels:
                return name
        return None

    def looks_foreign(self, category: str, image: NDArray[np.uint8]) -> bool:
        """Whether an image [H, W, 3] uint8 shows another product than a category's normal images.

        Needs no model of ours. False where the category has too few images to say how much they vary.
        """
        gallery = self._by_category.get(category)
        return gallery is not None and self._likeness.is_foreign(category, image, gallery.normals)

    def _load(self, name: str) -> NDArray[np.uint8]:
        sample_range = self._find_range(name.partition("/")[0])
        return load_image(self._data_dir / name, sample_range=sample_range)

    def _insert(self, name: str, row: Row) -> None:
        _, sha256, pixels, phash, thumbnail = row
        self._by_bytes.setdefault(sha256, name)
        if thumbnail:
            self._by_pixels.setdefault(pixels, name)
            gallery = self._by_category.setdefault(name.partition("/")[0], _Gallery())
            gallery.add(name, phash, thumbnail)


class _Gallery:
    """Fingerprints of one category.

    Attributes:
        normals: names of its normal images.
    """

    def __init__(self) -> None:
        self.normals: list[str] = []
        self._names: list[str] = []
        self._hashes = np.empty(0, dtype=np.uint64)  # grows by doubling
        self._thumbnails: list[bytes] = []

    def add(self, name: str, phash: int, thumbnail: bytes) -> None:
        size = len(self._names)
        if size == self._hashes.size:
            self._hashes = np.resize(self._hashes, max(_CHUNK, 2 * size))
        self._hashes[size] = np.int64(phash).astype(np.uint64)
        self._names.append(name)
        if name.split("/")[2] == GOOD:
            self.normals.append(name)
        self._thumbnails.append(thumbnail)

    def find(self, fingerprint: Fingerprint, *, levels: float) -> list[str]:
        """Images whose thumbnails are as near, the nearest first: they may be near-duplicates."""
        hashes = self._hashes[: len(self._names)]
        bits = np.bitwise_count(hashes ^ np.uint64(fingerprint.phash))
        own = fingerprint.thumbnail.astype(np.int16)
        found = []
        for index in np.flatnonzero(bits <= _MAX_BITS):
            other = np.frombuffer(self._thumbnails[index], dtype=np.uint8).astype(np.int16)
            difference = float(np.abs(own - other).mean())
            if difference <= levels:
                found.append((difference, self._names[index]))
        return [name for _, name in sorted(found)[:_MAX_COMPARED]]


def _measure_difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Largest difference of the means of blocks of two images, in levels; infinite if sizes differ."""
    if one.shape != other.shape:
        return math.inf
    rows, columns = (np.arange(0, side, _BLOCK_PX) for side in one.shape[:2])
    difference = np.subtract(one, other, dtype=np.int16)
    lines = np.add.reduceat(difference, rows, axis=0, dtype=np.int32)
    sums = np.add.reduceat(lines, columns, axis=1)
    heights, widths = (
        np.diff([*starts, side])
        for starts, side in zip((rows, columns), one.shape[:2], strict=True)
    )
    return float(np.abs(sums / (heights[:, None] * widths)[:, :, None]).max())


def _read_row(path: Path, stamp: str, sample_range: SampleRange | None) -> Row:
    sha256 = hash_file(path)
    try:
        fingerprint = take_fingerprint(load_image(path, sample_range=sample_range), sha256)
    except ImageError:  # validation names it; here only its bytes count
        return stamp, sha256, "", 0, b""
    return _to_row(stamp, fingerprint)


def _to_row(stamp: str, fingerprint: Fingerprint) -> Row:
    phash, thumbnail = _signed(fingerprint.phash), fingerprint.thumbnail.tobytes()
    return stamp, fingerprint.sha256, fingerprint.pixels, phash, thumbnail


def _signed(phash: int) -> int:
    """The same 64 bits as SQLite's signed integer."""
    return phash - (1 << 64) if phash >= 1 << 63 else phash
