"""How long validation of many images takes, and how much memory: `python -m benchmarks.validation`.

Draws JPEGs of 512 px (every twentieth a defect with its mask), then validates them with
`--workers` processes. Memory is sampled from /proc over this process and all below it, ten times a second;
pages that they share count for each.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.machine import print_heading
from onenip.data.validation import validate
from onenip.params import DataParams, ValidateParams

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


class MemorySampler(threading.Thread):
    """Watches the resident memory of this process and all below it until stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mib = 0.0
        self._stopped = threading.Event()

    def run(self) -> None:
        """Sample until stopped."""
        while not self._stopped.wait(0.1):
            self.peak_mib = max(self.peak_mib, measure_tree(os.getpid()))

    def stop(self) -> float:
        """The peak in MiB."""
        self._stopped.set()
        self.join()
        return self.peak_mib


def measure_tree(root: int) -> float:
    """Resident MiB of a process and all below it."""
    parents, pages = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        parents[int(folder.name)], pages[int(folder.name)] = int(stat[1]), int(stat[21])
    tree = {root}
    while more := {child for child, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return sum(pages.get(process, 0) for process in tree) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Measure and print a line of Markdown table per size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 10000])
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    print_heading(
        "benchmarks.validation", threads=args.workers, packages=["great-expectations", "pillow"]
    )
    print("| images | seconds | peak MiB, all processes |\n|---|---|---|")
    for count in args.images:
        with tempfile.TemporaryDirectory() as folder:
            draw_images(Path(folder) / "data", count)
            sampler = MemorySampler()
            sampler.start()
            started_at = time.perf_counter()
            validate(
                Path(folder) / "data",
                Path(folder) / "out",
                data=DataParams(),
                params=ValidateParams(),
                workers=args.workers,
            )
            seconds = time.perf_counter() - started_at
            peak_mib = sampler.stop()
        print(f"| {count} | {seconds:.1f} | {peak_mib:.0f} |")


if __name__ == "__main__":
    main()
