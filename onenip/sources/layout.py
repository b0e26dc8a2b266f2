"""From the files of a folder to the MVTec layout, inferred from their paths alone.

Understood are: several categories with `train`, `test` and `ground_truth`, also as MVTec LOCO and MVTec AD 2
unpack; one such category; categories whose folders are labels (OK and NG, good and crack); categories that
hold only images (all of them normal); a folder that holds only images (one category of normal images).
A single folder around all of it is looked through.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from onenip.data.labels import (
    GOOD,
    calls_defective,
    check_category,
    clean_label,
    clean_name,
    find_masked_stem,
    fold,
    hints_at,
    is_label,
    is_normal_label,
    strip_mask_word,
)
from onenip.errors import DataError, SourceError
from onenip.folders import is_junk
from onenip.images import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)

SPLITS = frozenset({"train", "test", "ground_truth"})
_MASK_FOLDERS = frozenset({"mask", "masks", "ground_truth", "groundtruth", "ground truth", "gt"})
_MASKS_BESIDE_LABELS = _MASK_FOLDERS | {"labels", "annotations"}  # these may be products elsewhere
_OTHER_SPLITS = {"training": "train", "testing": "test"}
# of its images the normal ones train, as of MVTec LOCO, and the others are tests
_VALIDATION = frozenset({"validation", "valid", "val"})
# what other tools call their files beside an image, and what tables end with
_BESIDE = {".xml": "Pascal VOC or CVAT", ".txt": "YOLO", ".json": "another tool"}
_TABLES = frozenset({".csv", ".tsv", ".jsonl", ".xlsx", ".xls"})
_PRIVATE = "test_private"  # images of MVTec AD 2 without labels
_NO_PRODUCT = frozenset({"images", "image", "imgs", "img", "default", "jpegimages"})
_SHOWN = 5
_EXPECTED = (
    "expected <category>/train/good/<image>, <category>/OK/<image> and <category>/NG/<image>, "
    "<category>/<image>, or images alone; see `onenip download --help`"
)

Parts = tuple[str, ...]


@dataclass(frozen=True)
class Placement:
    """Where one file goes.

    Attributes:
        target: path in the data set, POSIX and relative.
        path: as it was, POSIX and relative.
        is_mask: a mask that has to be rewritten as PNG with the values 0 and 255.
        more: paths of further masks of the same image, to be united with it.
    """

    target: str
    path: str
    is_mask: bool = False
    more: tuple[str, ...] = ()


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
        SourceError: if the layout is not understood, a category or label cannot be called so, or two files
            claim one place.
    """
    try:
        return _arrange(sorted(paths), name, origin)
    except DataError as error:
        raise SourceError(f"{origin}: {error}") from error


def _arrange(paths: Sequence[str], name: str, origin: str) -> list[Placement]:
    original: dict[Parts, str] = {}
    for path in paths:
        first = original.setdefault(_canonical(PurePosixPath(path).parts), path)
        if first != path:
            raise SourceError(f"{origin}: the names {first} and {path} differ only by case")
    files = [
        parts
        for parts in original
        if not is_junk(parts) and not any(part.startswith(_PRIVATE) for part in parts[:-1])
    ]
    depth = _wrapper_depth(files)
    wrappers = [
        part
        for part in next(filter(_is_image, files), ())[:depth]
        if part.casefold() not in _NO_PRODUCT
    ]
    name = [name, *wrappers][-1]
    groups: dict[str, list[Parts]] = defaultdict(list)
    for parts in files:
        groups[parts[depth] if len(parts) > depth + 1 else ""].append(parts)
    loose = groups.pop("", [])
    labels = {parts[depth] for parts in files if len(parts) == depth + 2 and is_label(parts[depth])}
    if groups.keys() & SPLITS or labels:
        whole = [parts for group in groups.values() for parts in group]
        placements = _place_category(whole, depth, _name_category(name))
    elif not any(_is_image(parts) for group in groups.values() for parts in group):
        placements = _place_images(loose, _name_category(name))
    else:
        if any(_is_image(parts) for parts in loose):
            raise SourceError(f"{origin}: images both beside and inside of folders; {_EXPECTED}")
        placements = []
        for category, group in groups.items():
            if any(map(_is_image, group)):
                called = _name_category(
                    name if category.casefold() in _NO_PRODUCT | _MASK_FOLDERS else category
                )
                placements += _place_category(group, depth + 1, called)
        _doubt_categories([one for one, group in groups.items() if any(map(_is_image, group))])
        _doubt_products(placements)
    if not any(_is_image(PurePosixPath(place.path).parts) for place in placements):
        raise SourceError(f"{origin}: no images found; {_EXPECTED}")
    placed = {place.path for place in placements}
    left_out = [original[parts] for parts in files if "/".join(parts) not in placed]
    left_out += [
        p for parts, p in original.items() if any(x.startswith(_PRIVATE) for x in parts[:-1])
    ]
    placements = _name_masks(
        [
            replace(place, path=original[tuple(place.path.split("/"))])
            for place in _find_mask_folders(placements)
        ]
    )
    _doubt_normals(placements, files)
    _report(left_out, placements, origin)
    check_clashes([place.target for place in placements], origin)
    return sorted(placements, key=lambda place: place.target)


def _doubt_categories(names: Sequence[str]) -> None:
    """Refuse folders such as NG_images beside OK_images, or images beside masks, as products."""
    plain = [one for one in names if one.casefold() in _NO_PRODUCT | _MASK_FOLDERS]
    if plain and len(names) > 1:
        raise DataError(f"the folder {plain[0]} beside others names no product; {_EXPECTED}")
    hints = {hint: name for name in reversed(names) if (hint := hints_at(name))}
    if len(hints) > 1:
        raise DataError(
            f"the folders {hints['normal']} and {hints['defective']} look like labels of one product; "
            "call them good and the kind of defect, below a folder of the product's name"
        )


def _doubt_products(placements: Sequence[Placement]) -> None:
    """Refuse folders such as bottle_NG as products of which all images are normal."""
    for place in placements:
        category, split, *_ = place.target.split("/")
        folder = PurePosixPath(place.path).parent.name
        if split == "train" and clean_name(folder) == category and calls_defective(category):
            raise DataError(f"{place.path}: the folder {folder} seems to hold defects; {_EXPECTED}")


def _doubt_normals(placements: Sequence[Placement], files: Sequence[Parts]) -> None:
    """Refuse masks among normal images, and files that may say what is defective where no folder does."""
    stems: dict[str, dict[str, str]] = defaultdict(dict)
    normals = [place for place in placements if f"/train/{GOOD}/" in place.target]
    for place in normals:
        if _is_image((place.path,)):
            path = PurePosixPath(place.path)
            stems[str(path.parent)][fold(path.stem)] = path.stem
    for place in normals:
        path = PurePosixPath(place.path)
        others = stems[str(path.parent)]
        if _is_image((place.path,)) and find_masked_stem(path.name, others, own=path.stem):
            raise DataError(
                f"{place.path} lies among normal images, but is a mask by its name; {_EXPECTED}"
            )
    if all(is_normal_label(PurePosixPath(place.path).parent.name) for place in normals):
        return
    for place in normals:
        path = PurePosixPath(place.path)
        if not is_normal_label(path.parent.name) and calls_defective(path.stem):
            raise DataError(
                f"{place.path}: its name calls it defective, and no folder says which images are normal: "
                "lay them out as OK/ and NG/, or name a CSV with path, category and label"
            )
    called = {stem for several in stems.values() for stem in several}
    for *_, file in files:
        suffix = PurePosixPath(file).suffix.lower()
        is_beside = suffix in _BESIDE and fold(file.split(".")[0]) in called
        if is_beside or suffix in _TABLES:
            what = f"annotations of {_BESIDE[suffix]}" if is_beside else "a table"
            raise DataError(
                f"{file} seems to be {what}, which is not read with a folder, and no folder says which "
                "images are normal: lay them out as OK/ and NG/, or name a CSV with path, category and label"
            )


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


def mask_target(category: str, label: str, stem: str) -> str:
    """Place of a mask: `<category>/ground_truth/<label>/<stem>_mask.png`."""
    return f"{category}/ground_truth/{label}/{stem}_mask.png"


def _name_category(name: str) -> str:
    kept = check_category(name)
    if kept != name:
        logger.info("category %r is kept as %r", name, kept)
    return kept


def _canonical(parts: Parts) -> Parts:
    """A path with its splits as MVTec AD writes them."""
    *folders, file = parts
    if not SPLITS & {folder.casefold() for folder in folders}:
        folders = [_OTHER_SPLITS.get(folder.casefold(), folder) for folder in folders]
    names = [folder.casefold() if folder.casefold() in SPLITS else folder for folder in folders]
    if "test_public" in names:  # MVTec AD 2
        at = names.index("test_public")
        names[at : at + 1] = [] if names[at + 1 : at + 2] == ["ground_truth"] else ["test"]
    extra = next((one for one in names[:-1] if one.casefold() in _VALIDATION), "")
    if extra and is_normal_label(names[-1]):
        names[names.index(extra)] = "train"
        file = f"{extra}-{file}"
    return (*names, file)


def _wrapper_depth(files: Sequence[tuple[str, ...]]) -> int:
    """Number of single folders around the categories."""
    depth = 0
    while True:
        inner = [parts for parts in files if len(parts) > depth + 1]
        tops = {parts[depth] for parts in inner}
        below = {parts[depth + 1] for parts in inner if len(parts) > depth + 2}
        has_images = any(_is_image(parts) for parts in files if len(parts) == depth + 1)
        is_said = tops & SPLITS or any(is_label(top) and calls_defective(top) for top in tops)
        if len(tops) != 1 or has_images or is_said or below & SPLITS or not below:
            return depth
        depth += 1


def _place_category(group: Sequence[Parts], depth: int, category: str) -> list[Placement]:
    """Placements of one category whose own folder ends at `depth`."""
    inside = [parts for parts in group if len(parts) > depth + 1]
    if any(parts[depth] in ("train", "test") for parts in inside):
        known = SPLITS | _MASK_FOLDERS
        splits = [p for p in inside if p[depth] in ("train", "test")]
        _doubt_labels({parts[depth + 1] for parts in splits if len(parts) > depth + 2})
        return [_place_split(p, depth, category) for p in inside if p[depth].casefold() in known]
    if any(is_label(parts[depth]) for parts in inside):
        return _place_labels(inside, depth, category)
    for parts in inside:
        if _is_image(parts):
            raise SourceError(f"{'/'.join(parts)}: its split and label are unknown; {_EXPECTED}")
    return _place_images([parts for parts in group if len(parts) == depth + 1], category)


def _place_split(parts: Parts, depth: int, category: str) -> Placement:
    path = "/".join(parts)
    split, *labels, file = parts[depth:]
    split = "ground_truth" if split.casefold() in _MASK_FOLDERS else split
    if split == "train" and not labels:
        labels = [GOOD]
    if split == "ground_truth" and len(labels) == 2 and _is_image(parts):  # MVTec LOCO
        target = mask_target(category, clean_label(labels[0]), labels[1])
        return Placement(target, path, is_mask=True)
    if len(labels) != 1:
        raise SourceError(f"{path}: expected {split}/<good or kind of defect>/<image>")
    label = clean_label(labels[0])
    return Placement(f"{category}/{split}/{label}/{file}", path)


def _place_labels(group: Sequence[Parts], depth: int, category: str) -> list[Placement]:
    """Placements of a category whose folders are labels: normal images train, defects are for tests."""
    placements = []
    words = {parts[depth] for parts in group if parts[depth].casefold() not in _MASKS_BESIDE_LABELS}
    folded = {fold(word): word for word in words}
    words -= {word for word in words if find_masked_stem(word, folded, own=word)}
    _doubt_labels(words)
    kinds = {
        fold(PurePosixPath(parts[-1]).stem): parts[depth]
        for parts in group
        if parts[depth] in words and not is_normal_label(parts[depth])
    }
    for parts in group:
        path, (word, *deeper, file) = "/".join(parts), parts[depth:]
        if word.casefold() in _MASKS_BESIDE_LABELS and not deeper and _is_image(parts):
            kind = find_masked_stem(file, kinds)
            if not kind:
                raise SourceError(
                    f"{path}: a mask of no defective image; expected {word}/<kind>/<mask>"
                )
            target = f"{category}/ground_truth/{clean_label(kind)}/{file}"
        elif word.casefold() in _MASKS_BESIDE_LABELS and len(deeper) == 1:
            target = f"{category}/ground_truth/{clean_label(deeper[0])}/{file}"
        elif deeper:
            raise SourceError(f"{path}: expected {category}/{word}/<image>")
        else:
            label = clean_label(word)
            target = f"{category}/{'train' if label == GOOD else 'test'}/{label}/{file}"
        placements.append(Placement(target, path))
    logger.info(
        "%s: taken as one category, its folders as labels: normal images of %s train, %s are defects",
        category,
        ", ".join(sorted(filter(is_normal_label, words))) or "no folder",
        ", ".join(sorted(word for word in words if not is_normal_label(word))) or "none",
    )
    return placements


def _doubt_labels(words: Collection[str]) -> None:
    """Refuse labels of which none says normal, but one seems to."""
    if not any(map(is_normal_label, words)):
        for word in words:
            if hints_at(word) == "normal":
                raise DataError(f"the folder {word} seems to hold normal images; call it good")


def _place_images(group: Sequence[Parts], category: str) -> list[Placement]:
    return [Placement(f"{category}/train/{GOOD}/{parts[-1]}", "/".join(parts)) for parts in group]


def _name_masks(placements: Sequence[Placement]) -> list[Placement]:
    """The same with each mask named after its image, and masks of one image united.

    A file beside the images whose name is one of theirs with a word for masks is such a mask.
    """
    stems: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    names: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    labels: dict[tuple[str, str], str] = {}
    for place in placements:
        category, split, label, file = place.target.split("/")
        if split == "test":
            stem = PurePosixPath(file).stem
            stems[category, label][fold(stem)] = stem
            names[category, label, stem] += [place.path] * _is_image((file,))
            labels.setdefault((category, fold(label)), label)
    named: dict[str, Placement] = {}
    plain, beside = [], []
    for place in placements:
        category, split, label, file = place.target.split("/")
        label = labels.get((category, fold(label)), label) if split == "ground_truth" else label
        own = PurePosixPath(file).stem if split == "test" else ""
        stem = find_masked_stem(file, stems[category, label], own=own)
        is_beside = split == "test" and stem != ""
        if not (split == "ground_truth" or is_beside) or not _is_image((file,)):
            plain.append(place)
            continue
        stem = stem or strip_mask_word(file)
        if len(same := names[category, label, stem]) > 1:
            raise DataError(
                f"{place.path} may be the mask of {same[0]} or of {same[1]}; rename one"
            )
        if is_beside:
            beside.append(place.path)
        target = mask_target(category, label, stem)
        is_mask = place.is_mask or PurePosixPath(file).suffix.lower() != ".png"
        first = named.get(target)
        if first is None:
            named[target] = replace(place, target=target, is_mask=is_mask)
        elif place.is_mask and first.is_mask:
            named[target] = replace(first, more=(*first.more, place.path))
        else:
            plain.append(replace(place, target=target))  # two files for one place
    if beside:
        logger.info("%d masks lie beside their images: %s", len(beside), _list(beside))
    return [*plain, *named.values()]


def _find_mask_folders(placements: Sequence[Placement]) -> list[Placement]:
    """The same, with masks in folders beside those of the defects: `NG_mask` beside `NG`."""
    kinds: dict[str, dict[str, str]] = defaultdict(dict)
    for place in placements:
        category, split, label, _ = place.target.split("/")
        if split == "test":
            kinds[category][fold(label)] = label
    found = []
    for place in placements:
        category, split, label, file = place.target.split("/")
        kind = find_masked_stem(label, kinds[category], own=label) if split == "test" else ""
        found.append(
            replace(place, target=f"{category}/ground_truth/{kind}/{file}") if kind else place
        )
    return found


def _is_image(parts: Sequence[str]) -> bool:
    return PurePosixPath(parts[-1]).suffix.lower() in IMAGE_SUFFIXES


def _list(paths: Sequence[str]) -> str:
    return ", ".join(paths[:_SHOWN]) + (", ..." if len(paths) > _SHOWN else "")


def _report(left_out: Sequence[str], placements: Sequence[Placement], origin: str) -> None:
    if left_out:
        logger.warning(
            "%s: %d files lie outside of the layout and are left out: %s",
            origin,
            len(left_out),
            _list(left_out),
        )
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
