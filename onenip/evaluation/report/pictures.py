"""Pictures of the report, embedded as JPEG so that its file needs nothing else."""

from __future__ import annotations

import base64
import io
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from onenip.detector.detector import Detector
from onenip.errors import ImageError
from onenip.evaluation.gallery import Picture
from onenip.evaluation.results import ImageResult
from onenip.images import load_image
from onenip.model.file import CategorySpec

_QUALITY = 82
_PROMPT_SIDE_PX = 160
_OUTLIER_SIDE_PX = 288
_SHOWN_OUTLIERS = 6


@dataclass(frozen=True)
class Shown:
    """One picture of the page."""

    source: str
    title: str
    note: str
    verdict: str
    is_wrong: bool


def show(picture: Picture, folder: Path) -> Shown:
    """A picture of the gallery, with what stands below it."""
    of = picture.result
    return Shown(
        source=embed(folder / picture.file),
        title=of.name,
        note=f"{of.label}, score {of.score:.3g}, threshold {of.threshold:.3g}",
        verdict=describe_verdict(of),
        is_wrong=of.is_defective != of.is_anomalous,
    )


def describe_verdict(result: ImageResult) -> str:
    """A verdict beside the truth: found, missed, false alarm or passed."""
    if result.is_defective:
        return "found" if result.is_anomalous else "missed"
    return "false alarm" if result.is_anomalous else "passed"


def show_prompts(detector: Detector | None) -> list[tuple[str, list[str]]]:
    """Pictures of the prompts of each category."""
    if detector is None:
        return []
    return [
        (name, [encode(Image.fromarray(image), _PROMPT_SIDE_PX) for image in prompts])
        for name in detector.categories
        for prompts in (detector.prompt_images(name),)
    ]


def show_outliers(known: CategorySpec, data_dir: Path | None) -> list[tuple[str, str]]:
    """Source and caption of a category's first outliers; the source is empty where the image is gone."""
    scores = dict(zip(known.normal_names, known.normal_scores, strict=False))
    shown = []
    for name in known.outliers[:_SHOWN_OUTLIERS]:
        source = ""
        if data_dir is not None:
            with suppress(ImageError):
                image = Image.fromarray(
                    load_image(data_dir / name, sample_range=known.sample_range)
                )
                source = encode(image, _OUTLIER_SIDE_PX)
        shown.append((source, f"{name}, score {scores[name]:.3g}"))
    return shown


def embed(path: Path | None, *, side: int | None = None) -> str:
    """A picture as a data address, as JPEG; empty if there is none."""
    if path is None:
        return ""
    with Image.open(path) as image:
        return encode(image.convert("RGB"), side)


def encode(image: Image.Image, side: int | None) -> str:
    """A picture as a data address, no side longer than `side` px."""
    if side is not None:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
