"""The version, and a digest of the code and libraries that a stored result depends on."""

from __future__ import annotations

import functools
import hashlib
from importlib import metadata
from pathlib import Path

__version__ = "0.1.0"

_PACKAGE = Path(__file__).parent


@functools.cache
def hash_code(*parts: str, libraries: tuple[str, ...] = ()) -> str:
    """Digest of source files of this package and of versions of libraries, as 64 hex digits.

    Whatever is kept from run to run is kept under such a digest, so that a change of the code that made it
    makes it anew.

    Args:
        parts: packages and modules by path in this package, such as `model` and `images.py`.
        libraries: names of installed distributions, such as `torch`.
    """
    digest = hashlib.sha256()
    for part in sorted(parts):
        path = _PACKAGE / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(_PACKAGE).as_posix().encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    for library in sorted(libraries):
        digest.update(f"{library} {metadata.version(library)}\n".encode())
    return digest.hexdigest()
