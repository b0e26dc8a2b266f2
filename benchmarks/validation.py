"""How long validation of many images takes, and how much memory: `python -m benchmarks.validation`.

Draws JPEGs of 512 px (every twentieth a defect with its mask), then validates them with `--workers` processes.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from onenip.params import DataParams, ValidateParams
from onenip.validation import validate

SIDE = 512


def draw_images(root: Path, count: int) -> None:
    """Write `count` unlike images of five categories."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    rng = np.random.default_rng(0)
    for index in range(count):
        category, is_test = root / f"category_{index % 5}", index % 20 == 0
        folder = category / ("test/spot" if is_test else "train/good")
        folder.mkdir(parents=True, exist_ok=True)
        wave = rng.uniform(0.02, 0.2, 2)
        value = 120 + 60 * np.sin(x * wave[0] + y * wave[1] + rng.uniform(0, 6))
        grain = np.tile(rng.normal(0, 8, (64, 64)), (8, 8))
        image = np.clip(value + grain, 0, 255).astype(np.uint8)
        Image.fromarray(image).convert("RGB").save(folder / f"{index:06}.jpg", quality=90)
        if is_test:
            masks = category / "ground_truth/spot"
            masks.mkdir(parents=True, exist_ok=True)
            mask = (np.hypot(y - 200, x - 300) < 20).astype(np.uint8) * 255
            Image.fromarray(mask).save(masks / f"{index:06}_mask.png")


def main() -> None:
    """Measure and print a line of Markdown table per size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 10000])
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores seen, {args.workers} workers, {SIDE}-px JPEGs")
    print("| images | seconds | peak MiB, main | peak MiB, largest worker |\n|---|---|---|---|")
    for count in args.images:
        with tempfile.TemporaryDirectory() as folder:
            draw_images(Path(folder) / "data", count)
            started_at = time.perf_counter()
            validate(
                Path(folder) / "data",
                Path(folder) / "out",
                data=DataParams(),
                params=ValidateParams(),
                workers=args.workers,
            )
            seconds = time.perf_counter() - started_at
        own, child = (
            resource.getrusage(who).ru_maxrss / 1024
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        print(f"| {count} | {seconds:.1f} | {own:.0f} | {child:.0f} |")


if __name__ == "__main__":
    main()
