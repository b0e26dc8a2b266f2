"""Arrays of images that are kept from run to run: pixels at model size, features.

Each is one file, named by what it was made from, so that new images add to the cache and change nothing in
it. Whoever asks says how to make what is missing: what was deleted or damaged is made anew.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from onenip.errors import DataError
from onenip.folders import write_whole

Arrays = dict[str, NDArray[Any]]

_TOUCH_SECONDS = 3600  # use within this time after the last is not noted


class Cache:
    """Arrays by kind and key.

    Args:
        folder: made if need be; None keeps everything in memory, for as long as this object lives.
        max_gib: size of the folder; of what lies beyond it, what was used longest ago is deleted.

    Attributes:
        made: by kind, how many were made, since there were none.
    """

    def __init__(self, folder: Path | None = None, *, max_gib: float = math.inf) -> None:
        self.made: Counter[str] = Counter()
        self._folder = folder
        self._limit = max_gib * 2**30
        self._written = 0  # bytes since the folder was last made smaller
        self._memory: dict[tuple[str, str], Arrays] = {}

    def get(self, kind: str, key: str, make: Callable[[], Arrays]) -> Arrays:
        """Arrays that are kept, or else made now and kept.

        Args:
            kind: folder of those that are alike: what they are, and a digest of all that made them.
            key: digest of the image.
            make: called where there are none.

        Raises:
            DataError: if the disk refuses.
        """
        path = None
        if self._folder is None:
            found = self._memory.get((kind, key))
        else:
            path = self._folder / kind / key[:2] / f"{key}.safetensors"
            found = _read(path)
        if found is not None:
            return found
        arrays = make()
        self.made[kind] += 1
        if path is None:
            self._memory[kind, key] = arrays
        else:
            self._write(path, arrays)
        return arrays

    def prune(self) -> None:
        """Delete what was used longest ago, as far as the folder is larger than it may be."""
        self._written = 0
        sizes: Counter[int] = Counter()  # by second of the last use
        for entry in self._walk():
            sizes[int(entry.stat().st_mtime)] += entry.stat().st_size
        excess, last = sum(sizes.values()) - self._limit, -1
        for second in sorted(sizes):
            if excess <= 0:
                break
            excess, last = excess - sizes[second], second
        for entry in self._walk() if last >= 0 else ():
            if entry.stat().st_mtime < last + 1:
                Path(entry.path).unlink(missing_ok=True)

    def _write(self, path: Path, arrays: Arrays) -> None:
        try:
            with write_whole(path, is_durable=False) as draft:
                save_file(arrays, draft)
            self._written += sum(array.nbytes for array in arrays.values())
            if self._written > self._limit / 8:
                self.prune()
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(
                f"{path.parent}: nothing can be kept here: {reason}", path=path
            ) from error

    def _walk(self) -> Iterator[os.DirEntry[str]]:
        folders = [str(self._folder)] if self._folder and self._folder.is_dir() else []
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        yield entry


def _read(path: Path) -> Arrays | None:
    """What a file holds; None where it is missing, damaged or cannot be read."""
    try:
        arrays = load_file(path)
        if time.time() - path.stat().st_mtime > _TOUCH_SECONDS:
            os.utime(path)
    except (OSError, SafetensorError):
        return None
    return arrays
