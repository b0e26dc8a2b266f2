"""The embedded demo set: photos of three products that onenip draws itself.

Promises MVTec layout, the same bytes for the same seed and library versions, and masks that are exactly
the pixels that a defect changed. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from onenip.data.labels import GOOD
from onenip.sources.demo import fabric, gear, label
from onenip.sources.demo.scene import Camera, Product, photograph_defect

Defect = Callable[[Product, np.random.Generator], Product]
TRAIN, TEST_GOOD, TEST_DEFECTIVE = 24, 9, 14  # images of each category
MIN_MASK_PX = 20  # a defect that changes less is drawn again

CATEGORIES: Mapping[str, tuple[Callable[[np.random.Generator], Product], Mapping[str, Defect]]] = {
    "fabric": (fabric.draw, fabric.DEFECTS),
    "gear": (gear.draw, gear.DEFECTS),
    "label": (label.draw, label.DEFECTS),
}


def draw_demo(folder: Path, *, seed: int = 0) -> None:
    """Write the demo set as 256-px PNGs in MVTec layout.

    Args:
        folder: the data root; a folder per category is made in it.
        seed: root of every random choice; each image has its own generator.
    """
    for number, category in enumerate(CATEGORIES):
        root = folder / category
        for split, first, count in (("train", 0, TRAIN), ("test", TRAIN, TEST_GOOD)):
            for index in range(count):
                rng = np.random.default_rng([seed, number, first + index])
                product = CATEGORIES[category][0](rng)
                _save(Camera.draw(rng).photograph(product), root / split / GOOD, f"{index:03}.png")
        _draw_defects(root, [seed, number, TRAIN + TEST_GOOD], CATEGORIES[category])


def _draw_defects(
    root: Path,
    seed: list[int],
    kind: tuple[Callable[[np.random.Generator], Product], Mapping[str, Defect]],
) -> None:
    draw, defects = kind
    names = sorted(defects)
    for index in range(TEST_DEFECTIVE):
        name, number = names[index % len(names)], index // len(names)
        rng = np.random.default_rng([*seed, index])
        product, camera = draw(rng), Camera.draw(rng)
        while True:
            photo, mask = photograph_defect(camera, product, defects[name](product, rng))
            if mask.sum() >= MIN_MASK_PX:
                break
        _save(photo, root / "test" / name, f"{number:03}.png")
        _save(mask.astype(np.uint8) * 255, root / "ground_truth" / name, f"{number:03}_mask.png")


def _save(picture: np.ndarray, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(folder / name)
