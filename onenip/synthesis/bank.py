"""The bank of synthetic anomalies that `synthesize` stores, for calibration and for people to look at."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from onenip.data.loading import ResizedImages
from onenip.data.manifest import Sample
from onenip.errors import DataError, ParamsError
from onenip.images import load_image, load_mask
from onenip.params import SynthesizeParams
from onenip.synthesis.anomalies import Synthesizer, SyntheticAnomaly
from onenip.synthesis.textures import load_textures

INDEX_FILE = "index.csv"
_COLUMNS = ("image", "mask", "category", "kind", "made_from")
_PER_CATEGORY = 216  # images: 200 for a threshold, 16 to select weights on
_SHOWN = 8  # anomalies of a category on the contact sheet
_TILE_PX = 128


@dataclass(frozen=True)
class Entry:
    """An anomaly to store: the sample it was made from, its number, the anomaly."""

    sample: Sample
    variant: int
    anomaly: SyntheticAnomaly


@dataclass(frozen=True)
class StoredAnomaly:
    """A row of the bank.

    Attributes:
        image: the anomalous image's file, at the input size of the category's zoom.
        mask: its mask's file.
        category: product category.
        kind: how it was made.
        made_from: name of the normal image.
    """

    image: Path
    mask: Path
    category: str
    kind: str
    made_from: str


def choose_normals(samples: Sequence[Sample]) -> list[int]:
    """Indices of the normal images whose anomalies a training asks for: so many of a category at most.

    They are those that are kept out of fitting; where a category has none, fitted ones. Training draws the
    anomalies that it learns from by itself.
    """
    chosen = []
    for indices in group_by_category(samples).values():
        held_out = [i for i in indices if samples[i].subset == "calibration"]
        chosen += sorted(held_out or indices, key=lambda i: samples[i].sha256)[:_PER_CATEGORY]
    return sorted(chosen)


def draw_entries(
    params: SynthesizeParams,
    images: ResizedImages,
    chosen: Sequence[int],
    *,
    seed: int,
    progress: bool,
) -> Iterator[Entry]:
    """Synthetic anomalies of some of the images, one by one, `per_image` of each.

    An anomaly is a function of the seed, its image and the other images of its category.

    Raises:
        ParamsError: naming an image that no kind of anomaly changes visibly.
    """
    samples = images.samples
    synthesizers = build_synthesizers(params, images.sizes.values(), seed=seed)
    by_category = group_by_category(samples)
    for index in tqdm(chosen, desc="synthesize", disable=not progress, unit="image"):
        rng = np.random.default_rng([seed, 4, int(samples[index].sha256[:12], 16)])
        mates = by_category[samples[index].category]
        for variant in range(params.per_image):
            donors = [images[i] for i in rng.choice(mates, min(2, len(mates)))]
            try:
                height, width, _ = images[index].shape
                drawn = synthesizers[height, width].draw(images[index], rng, donors=donors)
            except ParamsError as error:
                raise ParamsError(f"{samples[index].name}: {error}", key=error.key) from error
            yield Entry(samples[index], variant, drawn)


def build_synthesizer(params: SynthesizeParams, *, size: tuple[int, int], seed: int) -> Synthesizer:
    """A synthesizer with its textures, at an image size (H, W) in px."""
    folder = Path(params.textures) if params.textures else None
    textures = load_textures(folder, size=size, rng=np.random.default_rng([seed, 3]))
    return Synthesizer(params, textures=textures)


def build_synthesizers(
    params: SynthesizeParams, sizes: Iterable[tuple[int, int]], *, seed: int
) -> dict[tuple[int, int], Synthesizer]:
    """A synthesizer for each size (H, W) in px."""
    return {size: build_synthesizer(params, size=size, seed=seed) for size in sorted(set(sizes))}


def group_by_category(samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Indices of the samples of each category."""
    groups: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault(sample.category, []).append(index)
    return groups


def write(folder: Path, entries: Iterable[Entry]) -> None:
    """Write anomalies and masks as PNG, and the index, into a folder that is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / INDEX_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for entry in entries:
            stem = f"{entry.sample.category}/{entry.sample.sha256[:16]}_{entry.variant}"
            image, mask = f"{stem}.png", f"{stem}_mask.png"
            (folder / image).parent.mkdir(exist_ok=True)
            Image.fromarray(entry.anomaly.image).save(folder / image, compress_level=1)
            Image.fromarray(entry.anomaly.mask).save(folder / mask)
            writer.writerow(
                (image, mask, entry.sample.category, entry.anomaly.kind, entry.sample.name)
            )


def read(folder: Path) -> list[StoredAnomaly]:
    """Rows of a bank, in the order in which they were written.

    Raises:
        DataError: if there is no bank in the folder.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        raise DataError(f"{path}: no synthetic anomalies; run `onenip synthesize` first", path=path)
    with path.open(newline="", encoding="utf-8") as file:
        return [
            StoredAnomaly(
                folder / row["image"],
                folder / row["mask"],
                row["category"],
                row["kind"],
                row["made_from"],
            )
            for row in csv.DictReader(file)
        ]


def draw_contact_sheet(bank: Sequence[StoredAnomaly], images: ResizedImages) -> NDArray[np.uint8]:
    """Samples of every category in one picture: normal, anomalous and mask, one above the other.

    Args:
        bank: stored anomalies.
        images: that they were made from.

    Returns:
        [H, W, 3] uint8, a band per category.
    """
    normals = {sample.name: sample for sample in images.samples}
    bands = []
    for category in sorted({stored.category for stored in bank}):
        own = [stored for stored in bank if stored.category == category]
        picks = [own[i] for i in np.linspace(0, len(own) - 1, _SHOWN).round().astype(int)]
        columns = [
            np.concatenate(
                [
                    _tile(images.load(normals[stored.made_from])),
                    _tile(load_image(stored.image)),
                    _tile_mask(load_mask(stored.mask)),
                ]
            )
            for stored in picks
        ]
        bands.append(np.concatenate(columns, axis=1))
    return np.concatenate(bands)


def _tile(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    tile = Image.fromarray(image).resize((_TILE_PX, _TILE_PX), Image.Resampling.LANCZOS)
    return np.pad(np.asarray(tile), ((1, 1), (1, 1), (0, 0)), constant_values=255)


def _tile_mask(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return _tile(np.repeat(mask[:, :, None].astype(np.uint8) * 255, 3, axis=2))
