"""Unpacking archives from strangers: zip and tar, with every unsafe entry refused by name.

No link is ever made on disk: links inside of the archive become copies of what they point to.
"""

from __future__ import annotations

import errno
import gzip
import lzma
import posixpath
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

from onenip.data.labels import fold
from onenip.errors import SourceError
from onenip.sources.items import Limits, check_relative

ARCHIVE_SUFFIXES = (
    ".zip",
    ".tar",
    ".tar.gz",
    ".tgz",
    ".tar.xz",
    ".txz",
    ".tar.bz2",
    ".tbz2",
)

_CHUNK = 1 << 20
_MAX_DEPTH, _MAX_NAME_BYTES, _MAX_PATH_BYTES = (
    32,
    255,
    1024,
)  # of an entry, as file systems have them
_RATIO_FROM_BYTES = 64 << 20  # a small archive may well shrink a hundredfold
_DAMAGE = (
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    tarfile.TarError,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    RuntimeError,
    ValueError,
    OverflowError,
    struct.error,
)
_MAX_HEADER_BYTES = 1 << 20
_IS_UTF_8 = 0x800  # flag of an entry of a zip: its name is in UTF-8
_CONTENT_TYPES = (*tarfile.REGULAR_TYPES, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE)


def is_archive_name(name: str) -> bool:
    """Whether a file or address is named like an archive that can be unpacked."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def extract(archive: Path, folder: Path, *, limits: Limits, name: str = "") -> Path:
    """Unpack an archive; the folder appears when all of it was unpacked, or not at all.

    Args:
        archive: zip or tar, recognised by its content.
        folder: to be made; if it exists, it is taken as unpacked before.
        limits: on what it may hold.
        name: what to call the archive in errors; by default its path.

    Returns:
        `folder`.

    Raises:
        SourceError: if it is no archive, damaged, or holds something unsafe; the entry is named.
    """
    if folder.is_dir():
        return folder
    origin = name or str(archive)
    partial = folder.with_name(folder.name + ".unpacking")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    guard = _Guard(origin, archive.stat().st_size, limits)
    try:
        if (packed := _open_tar(archive)) is not None:
            _extract_tar(packed, partial, guard)
        elif zipfile.is_zipfile(archive):
            _extract_zip(archive, partial, guard)
        else:
            raise SourceError(f"{origin}: neither a zip nor a tar archive, or cut off")
        partial.rename(folder)
    except _DAMAGE as error:
        raise SourceError(f"{origin}: damaged archive ({error}); fetch it again") from error
    except OSError as error:
        if error.errno not in (
            None,
            errno.EINVAL,
        ):  # the disk's, not a wrong place or a decompressor's
            raise
        raise SourceError(f"{origin}: damaged archive ({error}); fetch it again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


class _Guard:
    """Refuses entries, by name, that break a rule of safe unpacking."""

    def __init__(self, origin: str, packed_bytes: int, limits: Limits) -> None:
        self.origin = origin
        self._packed_bytes = max(packed_bytes, 1)
        self._limits = limits
        self._names: dict[str, str] = {}  # as a forgetful file system sees them
        self._files: set[str] = set()
        self._folders: set[str] = set()
        self._total = 0

    def admit(self, name: str, size: int) -> str:
        """Path of an entry that may be unpacked, normalised."""
        path = check_relative(name, self.origin).as_posix()
        parts = path.split("/")
        if path == ".":
            raise SourceError(f"{self.origin}: refused, an entry has no name ({name!r})")
        if (
            len(parts) > _MAX_DEPTH
            or len(path.encode(errors="replace")) > _MAX_PATH_BYTES
            or any(len(part.encode(errors="replace")) > _MAX_NAME_BYTES for part in parts)
        ):
            raise SourceError(f"{self.origin}: refused, the name {name[:60]!r}... is too long")
        for length in range(1, len(parts) + 1):
            prefix = "/".join(parts[:length])
            first = self._names.setdefault(fold(prefix), prefix)
            if first != prefix or prefix in self._files:
                raise SourceError(f"{self.origin}: refused, {first} and {path} are one name")
        if path in self._folders:
            raise SourceError(f"{self.origin}: refused, {path} is a file and a folder")
        self._files.add(path)
        self._folders.update("/".join(parts[:length]) for length in range(1, len(parts)))
        if len(self._files) > self._limits.files:
            raise SourceError(f"{self.origin}: refused, more than {self._limits.files} files")
        self.check_total(path, size)
        return path

    def count(self, path: str, size: int) -> None:
        """Count bytes that were unpacked."""
        self._total += size
        self.check_total(path, 0)

    def check_total(self, path: str, size: int) -> None:
        """Refuse a file that would make too much."""
        total = self._total + size
        if total > self._limits.total_bytes:
            gib = self._limits.total_bytes / 2**30
            raise SourceError(f"{self.origin}: refused at {path}: unpacks to over {gib:.3g} GiB")
        if total > _RATIO_FROM_BYTES and total > self._limits.ratio * self._packed_bytes:
            ratio = self._limits.ratio
            raise SourceError(
                f"{self.origin}: refused at {path}: unpacks to {ratio:g} times its size"
            )

    def copy(self, reader: IO[bytes], folder: Path, path: str) -> None:
        """Write one file, counting."""
        destination = folder / path
        destination.parent.mkdir(parents=True, exist_ok=True)
        with destination.open("xb") as writer:
            while chunk := reader.read(_CHUNK):
                self.count(path, len(chunk))
                writer.write(chunk)


def _extract_zip(archive: Path, folder: Path, guard: _Guard) -> None:
    with zipfile.ZipFile(archive) as packed:
        links = {}
        for info in packed.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            name = _read_name(info).replace("\\", "/")  # PowerShell separates folders so
            if name.endswith("/"):
                check_relative(name, guard.origin)
                continue
            if kind not in (0, stat.S_IFREG, stat.S_IFLNK):
                raise SourceError(f"{guard.origin}: refused, {info.filename} is a device")
            if info.flag_bits & 1:
                raise SourceError(
                    f"{guard.origin}: {info.filename} is encrypted; unpack it yourself"
                )
            path = guard.admit(name, info.file_size)
            if kind == stat.S_IFLNK:
                with packed.open(info) as reader:
                    links[path] = _resolve(path, reader.read(4096).decode(), guard.origin)
                continue
            with packed.open(info) as reader:
                guard.copy(reader, folder, path)
    _copy_links(links, folder, guard)


def _read_name(info: zipfile.ZipInfo) -> str:
    """Name of an entry, in UTF-8 also where an archiver forgot to say so."""
    if not info.flag_bits & _IS_UTF_8:
        with suppress(UnicodeError):
            return info.filename.encode("cp437").decode()
    return info.filename


class _Header(tarfile.TarInfo):
    """Header of an entry; one of names and attributes, which is read into memory whole, must be small."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """The header in 512 bytes."""
        found = super().frombuf(buf, encoding, errors)
        if found.type not in _CONTENT_TYPES and found.size > _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {found.size} bytes")
        return found


def _open_tar(archive: Path) -> tarfile.TarFile | None:
    """The archive, None if it is no tar."""
    try:
        return tarfile.open(archive, "r:*", tarinfo=_Header)  # who unpacks it closes it
    except tarfile.TarError:
        return None


def _extract_tar(archive: tarfile.TarFile, folder: Path, guard: _Guard) -> None:
    with archive as packed:
        links = {}
        for info in packed:
            if info.isdir():
                check_relative(info.name, guard.origin)
                continue
            if not (info.isreg() or info.issym() or info.islnk()):
                raise SourceError(f"{guard.origin}: refused, {info.name} is a device")
            path = guard.admit(info.name, info.size if info.isreg() else 0)
            if info.isreg():
                reader = packed.extractfile(info)
                assert reader is not None
                guard.copy(reader, folder, path)
            elif info.issym():
                links[path] = _resolve(path, info.linkname, guard.origin)
            else:
                links[path] = _resolve("", info.linkname, guard.origin)  # named from the root
        _drain(packed, guard)
    _copy_links(links, folder, guard)


def _drain(packed: tarfile.TarFile, guard: _Guard) -> None:
    """Read what follows the last entry, so that the checksum at the very end is compared."""
    stream = packed.fileobj
    assert stream is not None
    while chunk := stream.read(_CHUNK):
        guard.count("the end", len(chunk))


def _resolve(path: str, link: str, origin: str) -> str:
    """What a link at `path` points to, from the archive's root."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    if link.startswith("/") or "\\" in link or target == ".." or target.startswith("../"):
        raise SourceError(f"{origin}: refused, the link {path or link} leads out of the archive")
    return target


def _copy_links(links: dict[str, str], folder: Path, guard: _Guard) -> None:
    for path, target in links.items():
        final, steps = target, 0
        while final in links and steps < len(links):
            final, steps = links[final], steps + 1
        if not (folder / final).is_file():
            raise SourceError(f"{guard.origin}: refused, the link {path} points to no file in it")
        with (folder / final).open("rb") as reader:
            guard.copy(reader, folder, path)
