"""Pixel figures of many maps: time and memory of `PixelScores`, and of the usual way beside it.

    python -m benchmarks.metrics [--maps 10000] [--runs 3]

The usual way holds every map, sorts all pixels once for `roc_curve` and once for
`average_precision_score`, and finds the overlap of every region at 200 thresholds. It is run on as
many maps as it can be expected to fit and finish; both ways see the same maps there. Every
measurement is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, roc_curve

from benchmarks.machine import print_heading
from onenip.data.loading import count_cores
from onenip.evaluation.metrics import PixelScores

SIDE_PX = 256
DEFECTIVE_SHARE = 0.5
NAIVE_MAPS = (250, 1000)
STEPS = 200
LIMIT = 0.30


def draw_maps(count: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Smooth maps with noise; half of them with one to three rectangular defects."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        coarse = rng.random((16, 16), np.float32)
        values = np.kron(coarse, np.ones((16, 16), np.float32))
        values += rng.random((SIDE_PX, SIDE_PX), np.float32)
        mask = np.zeros((SIDE_PX, SIDE_PX), bool)
        if rng.random() < DEFECTIVE_SHARE:
            for _ in range(rng.integers(1, 4)):
                y, x = rng.integers(0, SIDE_PX - 40, 2)
                mask[y : y + rng.integers(8, 40), x : x + rng.integers(8, 40)] = True
            values += np.float32(0.6) * mask
        yield values, mask


def score_ours(count: int) -> tuple[dict[str, float], float]:
    """Figures by `PixelScores`, one map at a time, and the seconds that it took."""
    scores, seconds = PixelScores(), 0.0
    for score_map, mask in draw_maps(count):
        started_at = time.perf_counter()
        scores.update(score_map, mask)
        seconds += time.perf_counter() - started_at
    started_at = time.perf_counter()
    figures = {name: float(value) for name, value in scores.compute().items()}
    return figures, seconds + time.perf_counter() - started_at


def score_naively(count: int) -> tuple[dict[str, float], float]:
    """Figures by scikit-learn over all pixels and the overlap at 200 thresholds, and the seconds."""
    pairs = list(draw_maps(count))
    maps, masks = np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs])
    del pairs
    started_at = time.perf_counter()
    rate, recall, _ = roc_curve(masks.ravel(), maps.ravel())
    figures = {
        "pixel_auroc": float(auc(rate, recall)),
        "pixel_ap": float(average_precision_score(masks.ravel(), maps.ravel())),
        "aupro": overlap_in_steps(maps, masks),
    }
    return figures, time.perf_counter() - started_at


def overlap_in_steps(maps: NDArray[np.float32], masks: NDArray[np.bool_]) -> float:
    """AUPRO as it is usually approximated: 200 thresholds, all regions of all images at each."""
    labels = [ndimage.label(mask, np.ones((3, 3)))[0] for mask in masks]
    rates, overlaps = [], []
    for threshold in np.linspace(maps.max(), maps.min(), STEPS):
        flagged = maps >= threshold
        shares = [
            float(np.mean(one[regions == number]))
            for one, regions in zip(flagged, labels, strict=True)
            for number in range(1, int(regions.max()) + 1)
        ]
        rates.append(float(np.mean(flagged[~masks])))
        overlaps.append(float(np.mean(shares)))
    grid = np.linspace(0, LIMIT, 1000)
    return float(np.trapezoid(np.interp(grid, rates, overlaps), grid) / LIMIT)


def measure(way: str, count: int) -> None:
    """Run one way and print what it took as a line of JSON; drawing the maps does not count."""
    figures, seconds = {"ours": score_ours, "naive": score_naively}[way](count)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "peak_gib": peak_gib, "figures": figures}))


def repeat(way: str, count: int, *, runs: int) -> list[dict[str, float]]:
    """Measurements of fresh processes."""
    command = [sys.executable, "-m", "benchmarks.metrics", "--way", way, "--maps", str(count)]
    return [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(runs)
    ]


def describe(way: str, count: int, found: list[dict[str, float]]) -> str:
    """One row of the table."""
    seconds = [item["seconds"] for item in found]
    peak = max(item["peak_gib"] for item in found)
    spread = f"{min(seconds):.1f}-{max(seconds):.1f}"
    rate = 1000 * statistics.median(seconds) / count
    cells = (way, count, f"{statistics.median(seconds):.1f}", spread, f"{rate:.2f}", f"{peak:.2f}")
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--maps", type=int, default=10_000)
    parser.add_argument(
        "--beside", type=int, nargs="+", default=NAIVE_MAPS, help="maps for both ways"
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--way", choices=["ours", "naive"], help="measure one way, in this process")
    arguments = parser.parse_args()
    if arguments.way:
        measure(arguments.way, arguments.maps)
        return
    packages = ["numpy", "scipy", "scikit-learn"]
    print_heading("benchmarks.metrics", threads=count_cores(), packages=packages)
    print("| way | maps | seconds, median | spread | ms a map | peak GiB |")
    print("|---|---|---|---|---|---|")
    for count in arguments.beside:
        both = {way: repeat(way, count, runs=arguments.runs) for way in ("naive", "ours")}
        for way, found in both.items():
            print(describe(way, count, found), flush=True)
        ratio = statistics.median(item["seconds"] for item in both["naive"]) / statistics.median(
            item["seconds"] for item in both["ours"]
        )
        print(f"\n{ratio:.0f} times faster at {count} maps: {both['naive'][0]['figures']} naively,")
        print(f"{both['ours'][0]['figures']} exactly.\n")
    print(describe("ours", arguments.maps, repeat("ours", arguments.maps, runs=1)))


if __name__ == "__main__":
    main()
