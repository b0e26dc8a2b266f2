"""From the files of a folder to the MVTec layout, told from their paths alone.

Understood are: several categories with `train`, `test` and `ground_truth`; one such category; categories
that hold only images (all of them normal); a folder that holds only images (one category of normal images).
A single folder around all of it is looked through.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from onenip.data.manifest import GOOD
from onenip.errors import SourceError
from onenip.images import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)

SPLITS = frozenset({"train", "test", "ground_truth"})
_GOOD_NAMES = frozenset({GOOD, "ok"})  # BTAD says ok
_JUNK = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
_EXPECTED = (
    "expected <category>/train/good/<image>, <category>/<image>, or images alone; "
    "see `onenip download --help`"
)


@dataclass(frozen=True)
class Placement:
    """Where one file goes: `target` in the data set, `path` as it was, both POSIX and relative."""

    target: str
    path: str
    is_mask: bool = False


def arrange(paths: Iterable[str], *, name: str, origin: str) -> list[Placement]:
    """Place files by their paths.

    Files that are no images are placed like images: judging them is the next stage's work.

    Args:
        paths: relative to the source's root, POSIX separators.
        name: the category's name where the folders give none.
        origin: the source, named in errors and log lines.

    Returns:
        Placements sorted by target.

    Raises:
        SourceError: if the layout is not understood, or two files claim one place.
    """
    files = [parts for path in sorted(paths) if not is_junk(parts := PurePosixPath(path).parts)]
    depth = _wrapper_depth(files)
    if depth:
        name = files[0][depth - 1]
    groups: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for parts in files:
        groups[parts[depth] if len(parts) > depth + 1 else ""].append(parts)
    loose = groups.pop("", [])
    if groups.keys() & SPLITS:
        placements = _place_category([p for group in groups.values() for p in group], depth, name)
    elif not any(_is_image(parts) for group in groups.values() for parts in group):
        placements = _place_images(loose, name)
    else:
        if any(_is_image(parts) for parts in loose):
            raise SourceError(f"{origin}: images both beside and inside of folders; {_EXPECTED}")
        placements = []
        for category, group in groups.items():
            placements += _place_category(group, depth + 1, category)
    if not any(_is_image(PurePosixPath(place.path).parts) for place in placements):
        raise SourceError(f"{origin}: no images found; {_EXPECTED}")
    _report(len(files) - len(placements), placements, origin)
    check_clashes([place.target for place in placements], origin)
    return sorted(placements, key=lambda place: place.target)


def check_clashes(targets: Sequence[str], origin: str) -> None:
    """Refuse two files for one place, also on file systems that ignore case or normalise Unicode.

    Raises:
        SourceError: naming both.
    """
    seen: dict[str, str] = {}
    for target in targets:
        for length in range(1, len(PurePosixPath(target).parts) + 1):
            prefix = "/".join(PurePosixPath(target).parts[:length])
            first = seen.setdefault(fold(prefix), prefix)
            if first != prefix:
                raise SourceError(f"{origin}: the names {first} and {prefix} differ only by case")
    counts: set[str] = set()
    for target in targets:
        if target in counts:
            raise SourceError(f"{origin}: two files claim the name {target}")
        counts.add(target)


def fold(name: str) -> str:
    """A name as the most forgetful file system sees it."""
    return unicodedata.normalize("NFC", name).casefold()


def is_junk(parts: Sequence[str]) -> bool:
    """Whether a path is an operating system's own file, or hidden."""
    return any(part.startswith(".") or part.casefold() in _JUNK for part in parts)


def mask_target(category: str, label: str, stem: str) -> str:
    """Place of a mask: `<category>/ground_truth/<label>/<stem>_mask.png`."""
    return f"{category}/ground_truth/{label}/{stem}_mask.png"


def _wrapper_depth(files: Sequence[tuple[str, ...]]) -> int:
    """Number of single folders around the categories."""
    depth = 0
    while True:
        inner = [parts for parts in files if len(parts) > depth + 1]
        tops = {parts[depth] for parts in inner}
        below = {parts[depth + 1] for parts in inner if len(parts) > depth + 2}
        has_images = any(_is_image(parts) for parts in files if len(parts) == depth + 1)
        if len(tops) != 1 or has_images or tops & SPLITS or below & SPLITS or not below:
            return depth
        depth += 1


def _place_category(group: Sequence[tuple[str, ...]], depth: int, category: str) -> list[Placement]:
    """Placements of one category whose own folder ends at `depth`."""
    if any(parts[depth] in SPLITS for parts in group if len(parts) > depth + 1):
        inner = [p for p in group if len(p) > depth + 1 and p[depth] in SPLITS]
        return [_place_split(parts, depth, category) for parts in inner]
    for parts in group:
        if len(parts) > depth + 1 and _is_image(parts):
            raise SourceError(f"{'/'.join(parts)}: cannot tell its split and label; {_EXPECTED}")
    return _place_images([parts for parts in group if len(parts) == depth + 1], category)


def _place_split(parts: tuple[str, ...], depth: int, category: str) -> Placement:
    path = "/".join(parts)
    split, *labels, file = parts[depth:]
    if split == "train" and not labels:
        labels = [GOOD]
    if len(labels) != 1:
        raise SourceError(f"{path}: expected {split}/<good or kind of defect>/<image>")
    label = GOOD if labels[0].casefold() in _GOOD_NAMES else labels[0]
    if split != "ground_truth":
        return Placement(f"{category}/{split}/{label}/{file}", path)
    name = PurePosixPath(file)
    if name.suffix.lower() not in IMAGE_SUFFIXES:
        return Placement(f"{category}/{split}/{label}/{file}", path)
    target = mask_target(category, label, name.stem.removesuffix("_mask"))
    return Placement(target, path, is_mask=name.suffix.lower() != ".png")


def _place_images(group: Sequence[tuple[str, ...]], category: str) -> list[Placement]:
    return [Placement(f"{category}/train/{GOOD}/{parts[-1]}", "/".join(parts)) for parts in group]


def _is_image(parts: Sequence[str]) -> bool:
    return PurePosixPath(parts[-1]).suffix.lower() in IMAGE_SUFFIXES


def _report(dropped: int, placements: Sequence[Placement], origin: str) -> None:
    if dropped:
        logger.info("%s: %d files lie outside of the layout and are left out", origin, dropped)
    by_category: dict[str, bool] = defaultdict(lambda: True)
    for place in placements:
        by_category[place.target.split("/")[0]] &= "/train/good/" not in f"/{place.path}"
    plain = sorted(
        category
        for category, has_no_split in by_category.items()
        if has_no_split
        and all(
            place.target.startswith(f"{category}/train/{GOOD}/")
            for place in placements
            if place.target.split("/")[0] == category
        )
    )
    if plain:
        logger.info(
            "%s: taken as normal training images, as no folder says otherwise: %s",
            origin,
            ", ".join(plain),
        )
