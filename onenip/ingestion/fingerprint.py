"""Images that are in the data already, recognised by their bytes, or by their look if re-encoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onenip.errors import ImageError
from onenip.images import IMAGE_SUFFIXES, hash_file, load_image
from onenip.ingestion.journal import Journal

_SIDE_PX = 32
_MAX_BITS = 4  # of 64 in which the hashes of near duplicates may differ
_CHUNK = 256


@dataclass(frozen=True)
class Fingerprint:
    """What an image is recognised by.

    Attributes:
        sha256: of the file's bytes, 64 hex digits.
        phash: perceptual hash, 64 bits.
        thumbnail: [1024] uint8, grey, 32 by 32 px, row by row.
    """

    sha256: str
    phash: int
    thumbnail: NDArray[np.uint8]


def take_fingerprint(image: NDArray[np.uint8], sha256: str) -> Fingerprint:
    """Fingerprint of an image [H, W, 3] uint8 whose file has this hash."""
    grey = Image.fromarray(image).convert("L")
    thumbnail = np.asarray(grey.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX), dtype=np.uint8)
    return Fingerprint(sha256, int(str(imagehash.phash(grey)), 16), thumbnail.ravel())


class KnownImages:
    """Every image under `data/`, of every category and split.

    Args:
        data_dir: the data root.
        journal: where fingerprints are kept, so that only new files are read.
    """

    def __init__(self, data_dir: Path, journal: Journal) -> None:
        self._by_bytes: dict[str, str] = {}
        self._by_category: dict[str, _Gallery] = {}
        cached = journal.read_known()
        fresh: dict[str, tuple[str, str, int, bytes]] = {}
        seen = set()
        for path in _list_images(data_dir):
            name = path.relative_to(data_dir).as_posix()
            seen.add(name)
            found = path.stat()
            stamp = f"{found.st_size}-{found.st_mtime_ns}"
            row = cached.get(name)
            if row is None or row[0] != stamp:
                row = _read_row(path, stamp)
                fresh[name] = row
            if len(fresh) >= _CHUNK:
                journal.write_known(fresh)
                fresh = {}
            self._insert(name, row)
        journal.write_known(fresh)
        journal.forget_known(sorted(set(cached) - seen))

    def add(self, name: str, fingerprint: Fingerprint) -> None:
        """Take note of an image that was placed."""
        row = ("", fingerprint.sha256, _signed(fingerprint.phash), fingerprint.thumbnail.tobytes())
        self._insert(name, row)

    def find_same(self, sha256: str) -> str | None:
        """Path below the data root of an image with these very bytes, None if there is none."""
        return self._by_bytes.get(sha256)

    def find_similar(self, category: str, fingerprint: Fingerprint, *, levels: float) -> str | None:
        """Path of an image of the category that looks the same, None if there is none.

        Args:
            category: where to look.
            fingerprint: of the image.
            levels: mean grey difference of thumbnails, 0..255, below which two images are the same.
        """
        gallery = self._by_category.get(category)
        return gallery.find(fingerprint, levels=levels) if gallery else None

    def _insert(self, name: str, row: tuple[str, str, int, bytes]) -> None:
        _, sha256, phash, thumbnail = row
        self._by_bytes.setdefault(sha256, name)
        if thumbnail:
            gallery = self._by_category.setdefault(name.partition("/")[0], _Gallery())
            gallery.add(name, phash, thumbnail)


class _Gallery:
    """Fingerprints of one category."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._hashes = np.empty(0, dtype=np.uint64)  # grows by doubling
        self._thumbnails: list[bytes] = []

    def add(self, name: str, phash: int, thumbnail: bytes) -> None:
        size = len(self._names)
        if size == self._hashes.size:
            self._hashes = np.resize(self._hashes, max(_CHUNK, 2 * size))
        self._hashes[size] = np.int64(phash).astype(np.uint64)
        self._names.append(name)
        self._thumbnails.append(thumbnail)

    def find(self, fingerprint: Fingerprint, *, levels: float) -> str | None:
        hashes = self._hashes[: len(self._names)]
        bits = np.bitwise_count(hashes ^ np.uint64(fingerprint.phash))
        own = fingerprint.thumbnail.astype(np.int16)
        for index in np.flatnonzero(bits <= _MAX_BITS):
            other = np.frombuffer(self._thumbnails[index], dtype=np.uint8).astype(np.int16)
            if np.abs(own - other).mean() < levels:
                return self._names[index]
        return None


def _list_images(data_dir: Path) -> Iterator[Path]:
    for path in sorted(data_dir.glob("*/t*/*/*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            yield path


def _read_row(path: Path, stamp: str) -> tuple[str, str, int, bytes]:
    sha256 = hash_file(path)
    try:
        fingerprint = take_fingerprint(load_image(path), sha256)
    except ImageError:  # validation names it; here only its bytes count
        return stamp, sha256, 0, b""
    return stamp, sha256, _signed(fingerprint.phash), fingerprint.thumbnail.tobytes()


def _signed(phash: int) -> int:
    """The same 64 bits as SQLite's signed integer."""
    return phash - (1 << 64) if phash >= 1 << 63 else phash
