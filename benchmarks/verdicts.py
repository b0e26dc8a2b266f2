"""Verdicts of a model at its own thresholds, by category, beside the best threshold in hindsight.

    python -m benchmarks.verdicts --data DIR [--preset cpu] [--seeds 3] [--set KEY=JSON] [--model FOLDER]

Trains the preset once per seed, as `benchmarks.quality` does, or takes a trained model with `--model`, and
judges the test images. For each category: normal images that the threshold rests on, the threshold, recall,
false alarms beside the interval that the model promises, F1, the best F1 that any threshold would have had on
these images, and balanced accuracy. `--checkpoints DIR` keeps trainings, so that what only changes the
calibration needs no second one.
Nothing is chosen by the figures that this prints.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.quality import select_samples, train, vary
from onenip.data.manifest import Sample, scan_layout, select
from onenip.detector.detector import Detector
from onenip.evaluation.metrics import image_figures
from onenip.params.presets import load_preset

_HEADER = (
    "| category | seed | normals | threshold | recall | false alarms | promised | F1 | best F1 | "
    "balanced accuracy | image AUROC |"
)


@dataclass(frozen=True)
class Row:
    """Verdicts on one category's test images; shares are fractions, NaN where there are no such images."""

    category: str
    seed: int
    normals: int
    threshold: float
    recall: float
    false_alarms: float
    promised: tuple[float, float]
    f1: float
    best_f1: float
    image_auroc: float

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the shares of defective and of good images that are judged right."""
        return (self.recall + 1 - self.false_alarms) / 2

    @property
    def keeps_promise(self) -> bool:
        """Whether the share of false alarms lies in the interval that the model promises."""
        return self.promised[0] <= self.false_alarms <= self.promised[1]

    def show(self) -> str:
        """A line of the table."""
        low, high = self.promised
        cells = (
            self.category,
            str(self.seed),
            str(self.normals),
            f"{self.threshold:.2f}",
            f"{self.recall:.2f}",
            f"{self.false_alarms:.3f}",
            f"{low:.3f}-{high:.3f}" + ("" if self.keeps_promise else ", missed"),
            f"{self.f1:.3f}",
            f"{self.best_f1:.3f}",
            f"{self.balanced_accuracy:.3f}",
            f"{100 * self.image_auroc:.1f}",
        )
        return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder in MVTec layout")
    parser.add_argument("--preset", default="cpu", help="preset to train")
    parser.add_argument("--seeds", type=int, default=1, help="trainings")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=JSON", help="change a param"
    )
    parser.add_argument("--model", type=Path, help="model folder to judge with, without training")
    parser.add_argument("--normals", type=int, help="training normals kept per category")
    parser.add_argument("--categories", help="comma-separated categories to keep")
    parser.add_argument("--cache", type=Path, default=Path("artifacts/cache"), help="feature cache")
    parser.add_argument("--checkpoints", type=Path, help="keep trainings here")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows: list[Row] = []
    if options.model:
        samples = scan_layout(options.data, calibration_fraction=0, holdout_fraction=0)
        rows += judge(Detector.load(options.model), samples, seed=0)
    for seed in range(0 if options.model else options.seeds):
        params = vary(load_preset(options.preset), [f"seed={seed}", *options.set])
        samples = select_samples(options, params)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            checkpoints = (options.checkpoints or folder) / f"{options.preset}-{seed}"
            detector = train(samples, params, folder, options.cache, checkpoints)
        rows += judge(detector, samples, seed=seed)
        logging.getLogger().info("%s", render(rows))
    print(render(rows))


def judge(detector: Detector, samples: Sequence[Sample], *, seed: int) -> list[Row]:
    """A row per category that the detector knows and that has test images."""
    rows = []
    for name in detector.categories:
        tested = select(samples, category=name, subset="test")
        if not tested:
            continue
        known = detector.spec.categories[name]
        found = [detector.predict([sample.path], category=name)[0] for sample in tested]
        scores = np.array([one.score for one in found])
        labels = np.array([sample.is_defective for sample in tested])
        figures = image_figures(scores, labels)
        flagged = scores > known.image_threshold
        hits, alarms = int((flagged & labels).sum()), int((flagged & ~labels).sum())
        total = int(labels.sum())
        point = known.operating_point
        rows.append(
            Row(
                category=name,
                seed=seed,
                normals=len(known.normal_names),
                threshold=known.image_threshold,
                recall=hits / total if total else np.nan,
                false_alarms=alarms / (~labels).sum() if (~labels).any() else np.nan,
                promised=(point.false_alarm_rate_low, point.false_alarm_rate_high),
                f1=2 * hits / (hits + alarms + total) if total else np.nan,
                best_f1=_to_float(figures["image_f1_max"]),
                image_auroc=_to_float(figures["image_auroc"]),
            )
        )
    return rows


def render(rows: Sequence[Row]) -> str:
    """The table in Markdown, with the mean as its last line."""
    means = [
        float(np.nanmean([getattr(row, key) for row in rows]))
        for key in ("recall", "false_alarms", "f1", "best_f1", "balanced_accuracy", "image_auroc")
    ]
    recall, alarms, f1, best, balanced, auroc = means
    kept = sum(row.keeps_promise for row in rows)
    last = (
        f"| mean | | | | {recall:.2f} | {alarms:.3f} | {kept} of {len(rows)} kept | {f1:.3f} | "
        f"{best:.3f} | {balanced:.3f} | {100 * auroc:.1f} |"
    )
    return "\n".join([_HEADER, "|---" * 11 + "|", *(row.show() for row in rows), last]) + "\n"


def _to_float(figure: object) -> float:
    return float(figure) if isinstance(figure, int | float) else float("nan")


if __name__ == "__main__":
    main()
