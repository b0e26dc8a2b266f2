"""Confirmed defects into the test set, and images whose label was wrong out of the data.

An image that was trained on never becomes a test image: a defect that is found among the training images is
taken out of them and goes nowhere else. Test images that people add carry the day in their name, so that
figures without them can be reported, too.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from onenip.data.checkout import hold_checkout
from onenip.data.git import HERE
from onenip.data.labels import check_category
from onenip.data.manifest import DATA_DIR, dated_name, match_masks, read_added, read_ranges
from onenip.data.outputs import Outputs
from onenip.errors import ImageError
from onenip.folders import write_whole
from onenip.images import SampleRange, find_images, hash_file, load_image
from onenip.ingestion.branch import DataBranch
from onenip.ingestion.fingerprint import KnownImages, take_fingerprint
from onenip.ingestion.ingest import open_journal
from onenip.params import RetrainParams


@dataclass(frozen=True)
class Defect:
    """An image that people say shows a defect.

    Attributes:
        id: names it in the result.
        category: the product category.
        kind: of the defect.
        image: the image file.
        mask: file of the mask, 0/255 at the image's size; None if nobody drew one.
    """

    id: str
    category: str
    kind: str
    image: Path
    mask: Path | None


@dataclass(frozen=True)
class Placing:
    """Where a defect lies now.

    Attributes:
        place: path below the data root; empty if it is not in the data.
        remark: why it is not, or what else was done; else empty.
    """

    place: str
    remark: str = ""


def place_defects(
    params: RetrainParams,
    defects: Sequence[Defect],
    *,
    withdrawn: Sequence[str] = (),
    by: Sequence[str],
    today: date,
    root: Path = HERE,
) -> tuple[dict[str, Placing], str | None]:
    """Put defects into the test set and take withdrawn images out of the data, as one version of it.

    Doing it again after a kill gives the same.

    Args:
        params: the branch that it is committed to.
        defects: what to add.
        withdrawn: paths below the data root that go, each with its mask.
        by: who decided, for the commit.
        today: the day that added images are dated by.
        root: the checkout.

    Returns:
        By id of the defect, where it is now; and the commit, None if nothing changed.

    Raises:
        BusyError: if another command is at work in this checkout.
        DataError: if branch and checkout went different ways, or a part of the data is missing here.
        VersioningError: if DVC or Git refuses.
    """
    data_dir = root / DATA_DIR
    branch = DataBranch(params, root)
    with hold_checkout("review", root=root), open_journal(root) as journal:
        branch.require_current(has_placed=True)
        ranges = read_ranges(Outputs(root).manifest)
        # withdrawn training images, too: they were trained on
        known = KnownImages(data_dir, journal, ranges.get)
        placings: dict[str, Placing] = {}
        changes: Counter[str] = Counter()
        for defect in defects:
            placings[defect.id], change = _place(
                defect, data_dir, known, today, ranges.get(defect.category)
            )
            changes[f"{defect.kind} of {defect.category}"] += change
        changes["withdrawn"] = sum(_remove(data_dir, name) for name in withdrawn)
        if not +changes:
            return placings, None
        summary = ", ".join(f"{count} {what}" for what, count in sorted((+changes).items()))
        people = ", ".join(sorted(set(by)))
        commit = branch.commit(f"Change the labels of reviewed images: {summary}\n\nBy {people}")
    return placings, commit


def _place(
    defect: Defect,
    data_dir: Path,
    known: KnownImages,
    today: date,
    sample_range: SampleRange | None,
) -> tuple[Placing, int]:
    """Where a defect is put, and whether that changed the data (0 or 1)."""
    category = check_category(defect.category)
    sha256 = hash_file(defect.image)
    try:
        fingerprint = take_fingerprint(load_image(defect.image, sample_range=sample_range), sha256)
    except ImageError as error:
        return Placing("", error.reason), 0
    folder = f"{category}/test/{defect.kind}"
    same = known.find_same(fingerprint)
    if same is not None and "/train/" in same:
        _remove(data_dir, same)
        remark = (
            f"it was trained on, as {same}: taken out of training, and kept out of the test set"
        )
        return Placing("", remark), 1
    name = dated_name(today, sha256, defect.image.suffix)
    remark = ""
    if same is None:
        known.add(f"{folder}/{name}", fingerprint)
    elif same.startswith(f"{folder}/") or read_added(same):
        name = Path(same).name
    place = f"{folder}/{name}"
    if same not in (None, place):
        remark = f"it was {same} before"
        _remove(data_dir, str(same))
    has_changed = _copy(defect.image, data_dir / place)
    if defect.mask is not None:
        mask = f"{category}/ground_truth/{defect.kind}/{Path(place).stem}_mask.png"
        has_changed |= _copy(defect.mask, data_dir / mask)
    return Placing(place, remark), int(has_changed)


def _copy(source: Path, target: Path) -> bool:
    """Write a file, unless it is there with the same content; whether that changed anything."""
    if target.is_file() and target.read_bytes() == source.read_bytes():
        return False
    with write_whole(target) as draft:
        shutil.copyfile(source, draft)
    return True


def _remove(data_dir: Path, name: str) -> bool:
    """Remove an image and its mask from the data; whether it was there."""
    path = data_dir / name
    if not path.is_file() or not path.resolve().is_relative_to(data_dir.resolve()):
        return False
    category, _, label, _ = name.split("/")
    masks = data_dir / category / "ground_truth" / label
    if masks.is_dir():
        files = [found.relative_to(data_dir).as_posix() for found in find_images(masks)[0]]
        if mask := match_masks([name], files).get(name):
            (data_dir / mask).unlink()
    path.unlink()
    return True
