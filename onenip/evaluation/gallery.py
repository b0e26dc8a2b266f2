"""Pictures worth looking at: the worst misses, the worst false alarms and a sample of the rest.

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

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from onenip.errors import DataError
from onenip.evaluation.results import ImageResult

Kind = Literal["miss", "false_alarm", "sample"]
KINDS: tuple[Kind, ...] = ("miss", "false_alarm", "sample")
INDEX_COLUMNS = ("file", "kind", "image", "category", "label", "score", "threshold")

_SIDE_PX = 288  # longer side of a panel
_GAP_PX = 6
_OPACITY = 0.65
_OUTLINE = (255, 255, 255)
_PAPER = 255
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Picture:
    """One picture in `heatmaps/`.

    Attributes:
        file: its path, relative to the evaluation's folder.
        kind: "miss": a defective image with one of the lowest scores; "false_alarm": a good image
            with one of the highest; "sample": any. The verdict says whether it really is one.
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
        """Keep an image's picture if it is among the most telling so far.

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


def draw_picture(
    image: NDArray[np.uint8],
    score_map: NDArray[np.float32],
    mask: NDArray[np.bool_] | None,
    *,
    pixel_threshold: float,
) -> NDArray[np.uint8]:
    """Image, heat map over it, and mask, side by side.

    The heat's colours run from 0 to twice the pixel threshold, so that pictures can be compared;
    what the model calls defective is outlined in white. An unknown mask is left out.

    Args:
        image: [H, W, 3] uint8, RGB.
        score_map: [h, w] float32.
        mask: [H, W] bool, or None.
        pixel_threshold: of the map.

    Returns:
        [h', w', 3] uint8, RGB, on white; panels at most 288 px high and wide.
    """
    height, width = image.shape[:2]
    scale = min(1.0, _SIDE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    heat = np.asarray(Image.fromarray(score_map).resize(size, Image.Resampling.BILINEAR))
    panels = [small, _overlay(small, np.nan_to_num(heat), pixel_threshold)]
    if mask is not None:
        levels = Image.fromarray(mask.astype(np.uint8) * 255)
        grey = np.asarray(levels.resize(size, Image.Resampling.BOX))
        panels.append(np.repeat(grey[:, :, None], 3, axis=2))
    gap = np.full((size[1], _GAP_PX, 3), _PAPER, dtype=np.uint8)
    joined = [part for panel in panels for part in (gap, panel)][1:]
    return np.concatenate(joined, axis=1)


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


def _overlay(
    image: NDArray[np.uint8], heat: NDArray[np.float32], pixel_threshold: float
) -> NDArray[np.uint8]:
    """The image in grey, heated where the map is high, outlined where it is above the threshold."""
    top = 2 * pixel_threshold if pixel_threshold > 0 else float(heat.max())
    level = np.clip(heat / top, 0, 1) if top > 0 else np.zeros_like(heat)
    colours = mpl.colormaps["inferno"](level)[:, :, :3] * 255
    grey = np.repeat((image @ _LUMA)[:, :, None], 3, axis=2)
    opacity = (_OPACITY * np.clip(level * 2, 0, 1))[:, :, None]
    mixed = grey * (1 - opacity) + colours * opacity
    region = heat > pixel_threshold
    mixed[region & ~ndimage.binary_erosion(region, border_value=1)] = _OUTLINE
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
