"""Pictures of the worst misses, the worst false alarms and a sample of the rest.

Chosen while images stream by, by rules that depend on nothing but scores and content; only the
chosen few are held in memory.
"""

from __future__ import annotations

import csv
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onenip.detector.heatmaps import draw_picture
from onenip.errors import DataError
from onenip.evaluation.results import ImageResult

Kind = Literal["miss", "false_alarm", "sample"]
KINDS: tuple[Kind, ...] = ("miss", "false_alarm", "sample")
INDEX_COLUMNS = ("file", "kind", "image", "category", "label", "score", "threshold")


@dataclass(frozen=True)
class Picture:
    """One picture in `heatmaps/`.

    Attributes:
        file: its path, relative to the evaluation's folder.
        kind: "miss": a defective image with one of the lowest scores; "false_alarm": a good image
            with one of the highest; "sample": any. Only the verdict decides whether it is a miss or an alarm.
        result: the image, its score and its threshold.
    """

    file: str
    kind: Kind
    result: ImageResult


class Gallery:
    """Chooses the pictures of one category.

    Args:
        per_kind: how many of each kind.
    """

    def __init__(self, per_kind: int) -> None:
        self._per_kind = per_kind
        self._chosen: dict[Kind, list[tuple[float, str, ImageResult, NDArray[np.uint8]]]]
        self._chosen = {kind: [] for kind in KINDS}

    def offer(
        self,
        result: ImageResult,
        *,
        sha256: str,
        image: NDArray[np.uint8],
        score_map: NDArray[np.float32],
        mask: NDArray[np.bool_] | None,
        pixel_threshold: float,
    ) -> None:
        """Keep an image's picture if it ranks among the first so far.

        Args:
            result: the image, its score and its threshold.
            sha256: of the image file; decides about the sample.
            image: [H, W, 3] uint8, RGB.
            score_map: [h, w] float32.
            mask: [H, W] bool; None if it is not known.
            pixel_threshold: above which a pixel of the map is called defective.
        """
        ranks: dict[Kind, float] = {"sample": -float(int(sha256[:12], 16))}
        ranks["miss" if result.is_defective else "false_alarm"] = (
            -result.score if result.is_defective else result.score
        )
        wanted = [kind for kind, rank in ranks.items() if self._is_wanted(kind, rank, result.name)]
        if not wanted:
            return
        picture = draw_picture(image, score_map, mask, pixel_threshold=pixel_threshold)
        for kind in wanted:
            push = heapq.heappush if len(self._chosen[kind]) < self._per_kind else heapq.heapreplace
            push(self._chosen[kind], (ranks[kind], result.name, result, picture))

    def write(self, folder: Path, category: str) -> list[Picture]:
        """Write the chosen pictures, worst first, into `folder/heatmaps/<category>/`."""
        target = folder / "heatmaps" / category
        written = []
        for kind in KINDS:
            ordered = sorted(self._chosen[kind], key=lambda item: (-item[0], item[1]))
            for number, (_, _, result, picture) in enumerate(ordered, start=1):
                target.mkdir(parents=True, exist_ok=True)
                stem = Path(result.name).stem
                path = target / f"{kind}_{number:02d}_{result.label}_{stem}.png"
                Image.fromarray(picture).save(path, optimize=True)
                written.append(Picture(path.relative_to(folder).as_posix(), kind, result))
        return written

    def _is_wanted(self, kind: Kind, rank: float, name: str) -> bool:
        chosen = self._chosen[kind]
        if len(chosen) < self._per_kind:
            return True
        return bool(chosen) and (rank, name) > chosen[0][:2]


def write_index(folder: Path, pictures: Sequence[Picture]) -> None:
    """Write `heatmaps/index.csv`: which picture shows what."""
    path = folder / "heatmaps" / "index.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(INDEX_COLUMNS)
        for item in pictures:
            of = item.result
            row = (item.file, item.kind, of.name, of.category, of.label, of.score, of.threshold)
            writer.writerow(row)


def load_index(folder: Path) -> list[Picture]:
    """Pictures that an evaluation's folder holds, in their order; none if it has no index.

    Raises:
        DataError: if the index is not what `write_index` writes.
    """
    path = folder / "heatmaps" / "index.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != INDEX_COLUMNS:
            raise DataError(f"{path}: not an index of pictures", path=path)
        return [_to_picture(row) for row in reader]


def _to_picture(row: dict[str, str]) -> Picture:
    result = ImageResult(
        name=row["image"],
        category=row["category"],
        label=row["label"],
        score=float(row["score"]),
        threshold=float(row["threshold"]),
    )
    kind = next(kind for kind in KINDS if kind == row["kind"])
    return Picture(file=row["file"], kind=kind, result=result)
