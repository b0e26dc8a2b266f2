"""What confirmed defects bring when the refiner learns from them, too (`train.real_defects`).

    python -m benchmarks.real_defects --data DIR [--counts 0,5,10,20] [--seeds 3] [--categories a,b]

For each category with enough defective test images, as many as the largest count, chosen by their hash, leave
the test set for good; then a model is trained with the first 0, 5, 10 and 20 of them beside the synthetic
anomalies. All are judged on the same remaining test images, at their own thresholds, so that only the
training differs. One model is trained for all categories, as the pipeline does.
Nothing is chosen by the figures that this prints. `ONENIP_DEVICE` names the device, as everywhere.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.quality import select_samples, train, vary
from benchmarks.verdicts import Row, judge
from onenip.data.manifest import Sample, list_categories, select
from onenip.params.presets import load_preset

_HEADER = "| category | real defects | recall | false alarms | F1 | best F1 | image AUROC |"
_LEAST_LEFT = 5  # defective test images that a category must keep


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder in MVTec layout")
    parser.add_argument("--counts", default="0,5,10,20", help="real defects of each category")
    parser.add_argument("--preset", default="cpu", help="preset to train")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each count")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=JSON", help="change a param"
    )
    parser.add_argument("--normals", type=int, help="training normals kept per category")
    parser.add_argument("--categories", help="comma-separated categories to keep")
    parser.add_argument("--cache", type=Path, default=Path("artifacts/cache"), help="feature cache")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    counts = [int(text) for text in options.counts.split(",")]
    rows: dict[int, list[Row]] = {count: [] for count in counts}
    for seed in range(options.seeds):
        params = vary(load_preset(options.preset), [f"seed={seed}", *options.set])
        samples = select_samples(options, params)
        for count in counts:
            changed = vary(params, [f"train.real_defects={0.5 if count else 0}"])
            moved = move_defects(samples, count=count, most=max(counts))
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                detector = train(moved, changed, folder, options.cache, folder / "checkpoint")
            rows[count] += judge(detector, moved, seed=seed)
            logging.getLogger().info("%s", render(rows))
    print(render(rows))


def move_defects(samples: Sequence[Sample], *, count: int, most: int) -> list[Sample]:
    """The same samples with some defects of each category learnt from instead of tested on.

    Args:
        samples: of a folder in MVTec layout.
        count: defects to learn from.
        most: defects that leave the test set; those that are not learnt from are left out.

    Returns:
        Samples; a category that would keep fewer than five defective test images is left out.
    """
    found: list[Sample] = []
    for category in list_categories(samples):
        own = select(samples, category=category)
        masked = [s for s in own if s.subset == "test" and s.is_defective and s.mask is not None]
        chosen = sorted(masked, key=lambda sample: sample.sha256)[:most]
        if len(masked) - len(chosen) < _LEAST_LEFT:
            continue
        taken = {sample.name for sample in chosen}
        found += [sample for sample in own if sample.name not in taken]
        found += [replace(sample, subset="defect") for sample in chosen[:count]]
    return found


def render(rows: dict[int, list[Row]]) -> str:
    """The table in Markdown: means over seeds, by category, and over all categories."""
    categories = sorted({row.category for found in rows.values() for row in found})
    lines = [_HEADER, "|---" * 7 + "|"]
    for category in [*categories, "mean"]:
        for count, found in rows.items():
            own = [row for row in found if category in (row.category, "mean")]
            if not own:
                continue
            keys = ("recall", "false_alarms", "f1", "best_f1", "image_auroc")
            values = [float(np.nanmean([getattr(row, key) for row in own])) for key in keys]
            cells = " | ".join(f"{100 * value:.1f}" for value in values)
            lines.append(f"| {category} | {count} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
