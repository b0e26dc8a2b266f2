"""Confirmed defects into the test set or beside the training images, and wrong labels out of the data.

An image that was trained on never becomes a test image: a defect that is found among the normal training
images is taken out of them. Defects that people add carry the day in their name, so that figures without
them can be reported, too, and those of a category and a day go to one side: often they show one part.
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
from onenip.ingestion.journal import Journal
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
    training_share: float,
    withdrawn: Sequence[str] = (),
    by: Sequence[str],
    today: date,
    root: Path = HERE,
) -> tuple[dict[str, Placing], str | None]:
    """Put defects into the data and take withdrawn images out of them, as one version.

    Doing it again after a kill gives the same.

    Args:
        params: the branch that it is committed to.
        defects: what to add.
        training_share: share of added defects, those with a mask, that are trained on instead of tested on.
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
        placer = _Placer(data_dir, known, journal, today)
        placings: dict[str, Placing] = {}
        changes: Counter[str] = Counter()
        masked = Counter(defect.category for defect in defects if defect.mask is not None)
        splits = {
            category: _choose_split(data_dir / category, today, count, training_share)
            for category, count in masked.items()
        }
        for defect in defects:
            split = splits[defect.category] if defect.mask is not None else "test"
            placings[defect.id], change = placer.place(
                defect, split, ranges.get(defect.category), is_trainable=training_share > 0
            )
            changes[f"{defect.kind} of {defect.category}"] += change
        changes["withdrawn"] = sum(placer.remove(name) for name in withdrawn)
        if not +changes:
            return placings, None
        summary = ", ".join(f"{count} {what}" for what, count in sorted((+changes).items()))
        people = ", ".join(sorted(set(by)))
        commit = branch.commit(f"Change the labels of reviewed images: {summary}\n\nBy {people}")
    return placings, commit


def _choose_split(folder: Path, today: date, count: int, share: float) -> str:
    """Side of a category that its defects of a day go to: `train` as long as `share` is not exceeded there.

    What was placed today already decides.

    Args:
        folder: of the category.
        today: the day.
        count: new defects.
        share: of all defects that people added.
    """
    if share == 0:
        return "test"
    added = Counter[str]()
    for path in find_images(folder)[0] if folder.is_dir() else ():
        split = path.relative_to(folder).parts[0]
        day = read_added(path.name) if split in ("train", "test") else ""
        if day == today.isoformat():
            return split
        added[split] += bool(day)
    total = added["train"] + added["test"] + count
    return "train" if added["train"] + count <= share * total else "test"


@dataclass(frozen=True)
class _Placer:
    """Puts defects into the data folder; `known` are its images as they were before, and the new ones."""

    data_dir: Path
    known: KnownImages
    journal: Journal
    today: date

    def place(
        self, defect: Defect, split: str, sample_range: SampleRange | None, *, is_trainable: bool
    ) -> tuple[Placing, int]:
        """Where a defect is put, and whether that changed the data (0 or 1)."""
        category = check_category(defect.category)
        sha256 = hash_file(defect.image)
        try:
            image = load_image(defect.image, sample_range=sample_range)
        except ImageError as error:
            return Placing("", error.reason), 0
        fingerprint = take_fingerprint(image, sha256)
        same = self.known.find_same(fingerprint)
        was_trained_on = same is not None and same.split("/")[1] == "train"
        if was_trained_on or self.journal.was_withdrawn(sha256):
            if not is_trainable or defect.mask is None:
                has_left = was_trained_on and self.remove(str(same))
                where = f", as {same}" if same else ""
                remark = (
                    f"it was trained on{where}: taken out of training, and kept out of the test set"
                )
                return Placing("", remark), int(has_left)
            split = "train"
        elif same is not None:
            split = "test"
        folder = f"{category}/{split}/{defect.kind}"
        name = dated_name(self.today, sha256, defect.image.suffix)
        remark = ""
        if same is None:
            self.known.add(f"{folder}/{name}", fingerprint)
        elif same.startswith(f"{folder}/") or read_added(same):
            name = Path(same).name
        place = f"{folder}/{name}"
        has_changed = _copy(defect.image, self.data_dir / place)
        if defect.mask is not None:
            mask = f"{category}/ground_truth/{defect.kind}/{Path(place).stem}_mask.png"
            has_changed |= _copy(defect.mask, self.data_dir / mask)
        if same not in (None, place):
            remark = f"it was {same} before"
            has_changed |= self.remove(str(same))
        return Placing(place, remark), int(has_changed)

    def remove(self, name: str) -> bool:
        """Remove an image and its mask from the data; whether it was there."""
        path = self.data_dir / name
        if not path.is_file() or not path.resolve().is_relative_to(self.data_dir.resolve()):
            return False
        category, split, label, _ = name.split("/")
        if split == "train":
            self.journal.note_withdrawn(hash_file(path))
        masks = self.data_dir / category / "ground_truth" / label
        if masks.is_dir():
            files = [one.relative_to(self.data_dir).as_posix() for one in find_images(masks)[0]]
            if mask := match_masks([name], files).get(name):
                (self.data_dir / mask).unlink()
        path.unlink()
        return True


def _copy(source: Path, target: Path) -> bool:
    """Write a file, unless it is there with the same content; whether that changed anything."""
    if target.is_file() and target.read_bytes() == source.read_bytes():
        return False
    with write_whole(target) as draft:
        shutil.copyfile(source, draft)
    return True
