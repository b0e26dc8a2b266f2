"""A tiny real data set, tiny params and a tiny real detector, for tests that need the real thing fast."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from lightning_fabric import Fabric
from PIL import Image

from onenip.data.cache import Cache
from onenip.data.labels import GOOD
from onenip.data.loading import ResizedImages
from onenip.data.manifest import Sample, list_categories, scan_layout
from onenip.images import hash_file
from onenip.model.file import SPEC_FILE, TENSORS_FILE, hash_model, seal_spec
from onenip.params import Params
from onenip.synthesis import bank as synthetic_bank
from onenip.training.fit import FitResult, fit_detector

CATEGORIES = ("disc", "stripes")
SIZE = 64


def draw_tiny_data(
    folder: Path, *, train: int = 8, test_good: int = 3, defective: int = 3, seed: int = 0
) -> Path:
    """Two categories in MVTec layout, 64-px PNGs, one painted defect each."""
    rng = np.random.default_rng(seed)
    for category in CATEGORIES:
        for split, label, count in (
            ("train", GOOD, train),
            ("test", GOOD, test_good),
            ("test", "spot", defective),
        ):
            images = folder / category / split / label
            images.mkdir(parents=True)
            for i in range(count):
                image = draw_normal(category, rng)
                if label != GOOD:
                    image, mask = paint_spot(image, rng)
                    masks = folder / category / "ground_truth" / label
                    masks.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask.astype(np.uint8) * 255).save(masks / f"{i:03}_mask.png")
                Image.fromarray(image).save(images / f"{i:03}.png")
    return folder


def draw_normal(category: str, rng: np.random.Generator) -> np.ndarray:
    """One normal image, [64, 64, 3] uint8."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    if category == "disc":
        cy, cx = rng.normal(SIZE / 2, 1.5, 2)
        value = np.where(np.hypot(y - cy, x - cx) < 22 + rng.normal(0, 0.7), 190.0, 40.0)
        tint = np.array([1.0, 0.8, 0.5])
    else:
        value = 128 + 70 * np.sin((x + rng.uniform(0, 6)) * 0.8)
        tint = np.array([0.6, 0.9, 1.0])
    noisy = value[:, :, None] * tint + rng.normal(0, 6, (SIZE, SIZE, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def paint_spot(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The image with a red spot on it, and where the spot is."""
    y, x = np.mgrid[:SIZE, :SIZE]
    cy, cx = rng.integers(22, SIZE - 22, 2)
    mask = np.hypot(y - cy, x - cx) < 6
    painted = image.copy()
    painted[mask] = (200, 20, 20)
    return painted, mask


def write_figures(folder: Path, model_dir: Path, *, categories: Iterable[str] = CATEGORIES) -> Path:
    """An evaluation of a model, with one figure per category; its folder is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    row = {"image_auroc": 0.9, "pixel_ap": None}
    figures = {"mean": row, "categories": dict.fromkeys(categories, row)}
    content = {"model_digest": hash_model(model_dir), **figures}
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def make_tiny_params(**sections: dict) -> Params:
    """The smallest legal params, with sections on top."""
    values = Params().dump()
    tiny = {
        "data": {"calibration_fraction": 0.3},
        "model": {
            "backbone": "tf_efficientnet_lite0",
            "input_size": [SIZE, SIZE],
            "width": 16,
            "heads": 2,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "feedforward": 16,
            "neighbor_size": 3,
            "refiner_width": 8,
            "memory_tokens": 32,
        },
        "train": {"epochs": 2, "max_steps": 4, "batch_size": 4, "log_steps": 1},
        "calibrate": {"prompts": 2, "pooling_px": 8},
    }
    for section, overlay in [*tiny.items(), *sections.items()]:
        values[section] = {**values[section], **overlay}
    return Params.parse(values)


def list_samples(root: Path, params: Params) -> list[Sample]:
    """Samples of a folder in MVTec layout, as its manifest would list them."""
    return scan_layout(
        root,
        calibration_fraction=params.data.calibration_fraction,
        holdout_fraction=params.data.holdout_fraction,
    )


def fit_tiny(
    root: Path,
    params: Params,
    folder: Path,
    *,
    checkpoint: Path | None = None,
    cache: Path | None = None,
    fabric: Fabric | None = None,
) -> FitResult:
    """A detector really fitted to the tiny data, in a second or two."""
    samples = list_samples(root, params)
    normal = [s for s in samples if s.subset != "test"]
    kept = Cache(cache)
    images = ResizedImages(
        normal, dict.fromkeys(list_categories(samples), params.model.input_size), kept
    )
    chosen = synthetic_bank.choose_normals(normal)
    entries = synthetic_bank.draw_entries(params.synthesize, images, chosen, seed=0, progress=False)
    bank = folder / "bank"
    if not bank.exists():
        synthetic_bank.write(bank, entries)
    return fit_detector(
        params,
        samples=samples,
        bank=synthetic_bank.read(bank),
        provenance={},
        checkpoint_dir=checkpoint or folder / "checkpoint",
        cache=kept,
        on_log=lambda _step, _losses: None,
        progress=False,
        fabric=fabric,
    )


def change_spec(folder: Path, change: Callable[[dict], None]) -> None:
    """Change the description of a model as a forger would, who seals it anew."""
    path = folder / SPEC_FILE
    values = json.loads(path.read_text())
    change(values)
    path.write_text(seal_spec(values, hash_file(folder / TENSORS_FILE)))
