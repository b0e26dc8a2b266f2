"""Detection quality of presets on one data set, beside nearest neighbours on the same features.

    python -m benchmarks.quality --data DIR --preset cpu --preset paper-lite2 --seeds 3 --minutes 20

Trains each preset once per seed, evaluates on the test images, and writes one table in Markdown: figures,
seconds, memory, model size. With `--minutes`, a training stops at the step that it has reached by then
(its schedule is fitted to that by a short trial). `--set train.max_steps=100` varies a param, `--normals 15`
keeps that many training normals per category, `--categories a,b` keeps some categories, and
`--hold-out c` trains without `c` and adds it from its first normal image alone. What only changes the
calibration (`--set calibrate.prompts=1`) needs no second training with `--checkpoints DIR`. `--peer PYTHON`
adds a row of anomalib's PatchCore, one model a category, run by an interpreter that has anomalib installed.
Nothing is chosen by the figures that this prints.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onenip.data.cache import Cache
from onenip.data.loading import ResizedImages
from onenip.data.manifest import Sample, list_categories, scan_layout, select
from onenip.detector.detector import Detector
from onenip.detector.prediction import resize_map
from onenip.detector.scoring import score_maps
from onenip.detector.zoom import choose_zooms
from onenip.evaluation.metrics import PixelScores, image_figures
from onenip.images import load_image, load_mask, resize_image
from onenip.model.memory import match_tokens
from onenip.model.network import CategoryStatistics, Network
from onenip.params import Params
from onenip.params.presets import load_preset, merge
from onenip.synthesis import bank as synthetic_bank
from onenip.training.fit import build_network, fit_detector, start_fabric

FIGURES = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro")
_TRIAL_STEPS = 12
_CHUNK = 16384  # memory tokens compared at once

log = logging.getLogger("benchmarks.quality")


@dataclass(frozen=True)
class Row:
    """One line of the table: figures and milliseconds an image per category, and what the rest costs."""

    name: str
    seed: int
    figures: dict[str, dict[str, float]]
    train_seconds: float
    milliseconds: dict[str, float]
    model_mb: float

    def mean(self, figure: str) -> float:
        """Mean over categories in percent, of those where the figure is defined."""
        values = [category[figure] for category in self.figures.values()]
        return 100 * float(np.nanmean(values))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder in MVTec layout")
    parser.add_argument("--preset", action="append", default=[], help="preset to train; repeatable")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each preset")
    parser.add_argument("--minutes", type=float, help="training time of each, at most")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=JSON", help="change a param"
    )
    parser.add_argument("--normals", type=int, help="training normals kept per category")
    parser.add_argument("--categories", help="comma-separated categories to keep")
    parser.add_argument("--hold-out", help="category given only as one prompt, without training")
    parser.add_argument("--cache", type=Path, default=Path("artifacts/cache"), help="feature cache")
    parser.add_argument(
        "--checkpoints", type=Path, help="keep trainings here; equal ones are not repeated"
    )
    parser.add_argument("--no-baseline", action="store_true", help="leave out nearest neighbours")
    parser.add_argument("--peer", type=Path, help="interpreter with anomalib, for its PatchCore")
    parser.add_argument("--out", type=Path, help="write the table here, too")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = []
    for name in options.preset or ["cpu"]:
        for seed in range(options.seeds):
            params = vary(load_preset(name), [f"seed={seed}", *options.set])
            samples = select_samples(options, params)
            if not rows and not options.no_baseline:
                rows.append(measure_neighbors(samples, params))
            if options.peer and seed == 0 and name == (options.preset or ["cpu"])[0]:
                rows.append(measure_peer(samples, params, options.peer))
            rows.append(measure_preset(name, samples, params, options))
    table = render(rows, options)
    print(table)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(table, encoding="utf-8")


def measure_preset(
    name: str, samples: Sequence[Sample], params: Params, options: argparse.Namespace
) -> Row:
    """Train and evaluate one preset."""
    held_out = options.hold_out
    kept = [s for s in samples if s.category != held_out]
    if options.minutes:
        params = _fit_minutes(kept, params, options)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        started_at = time.perf_counter()
        checkpoints = (options.checkpoints or folder) / f"{name}-{params.seed}"
        detector = train(kept, params, folder, options.cache, checkpoints)
        seconds = time.perf_counter() - started_at
        if held_out:
            first = select(samples, category=held_out, subset="fit")[0]
            detector = detector.add_category(held_out, [first.path])
        detector.save(folder / "model")
        size = sum(file.stat().st_size for file in (folder / "model").iterdir()) / 1e6
    figures, milliseconds = evaluate(detector, samples)
    return Row(name, params.seed, figures, seconds, milliseconds, size)


def evaluate(
    detector: Detector, samples: Sequence[Sample]
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Figures per category, pixels at the images' own size, and median milliseconds an image."""
    figures, milliseconds = {}, {}
    for category in detector.categories:
        scores, labels, seconds, pixels = [], [], [], PixelScores()
        for sample in select(samples, category=category, subset="test"):
            prediction = detector.predict([sample.path], category=category)[0]
            seconds.append(prediction.seconds)
            scores.append(prediction.score)
            labels.append(sample.is_defective)
            _update(pixels, prediction.map, sample)
        figures[category] = _to_figures(scores, labels, pixels)
        milliseconds[category] = 1000 * float(np.median(seconds))
    return figures, milliseconds


def measure_neighbors(samples: Sequence[Sample], params: Params) -> Row:
    """Nearest neighbours per category: every averaged, standardised normal token kept."""
    network = build_network(params, start_fabric(params.train)).to("cpu")
    size = params.model.input_size
    figures, milliseconds, tokens_kept = {}, {}, 0
    with torch.inference_mode():
        for category in list_categories(samples):
            own = select(samples, category=category)
            normals = [s for s in own if s.subset not in ("test", "defect")]
            embedded = [_embed(network, s, size) for s in normals]
            reference = CategoryStatistics.measure([one[0] for one in embedded])
            memory = torch.cat(
                [network.average_tokens(reference.standardize(x))[0] for x in embedded]
            )
            tokens_kept += memory.numel()
            scores, labels, seconds, pixels = [], [], [], PixelScores()
            for sample in select(samples, category=category, subset="test"):
                started_at = time.perf_counter()
                fine = reference.standardize(_embed(network, sample, size))
                query = network.average_tokens(fine)[0]
                chunks = [match_tokens(query, part)[0] for part in memory.split(_CHUNK)]
                distance = torch.stack(chunks).amin(0)[None]
                map_ = network.distance_map(distance.unflatten(1, network.fine_grid))
                scores.append(float(score_maps(map_, params.calibrate)))
                seconds.append(time.perf_counter() - started_at)
                labels.append(sample.is_defective)
                own = load_image(sample.path).shape
                _update(pixels, resize_map(map_[0].numpy(), (own[0], own[1])), sample)
            figures[category] = _to_figures(scores, labels, pixels)
            milliseconds[category] = 1000 * float(np.median(seconds))
    megabytes = tokens_kept * 4 / 1e6
    return Row("nearest neighbours", 0, figures, 0.0, milliseconds, megabytes)


def measure_peer(samples: Sequence[Sample], params: Params, interpreter: Path) -> Row:
    """Figures of anomalib's PatchCore, a model a category: same backbone and images, its own pipeline.

    It reads the strides of 8 and 16, as its authors do, and keeps a tenth of the tokens (its default).
    """
    backbone = build_network(params, start_fabric(params.train)).to("cpu").backbone
    facts: Any = backbone.model.feature_info
    layers = [one["module"] for one in facts.get_dicts() if one["reduction"] in (8, 16)]
    figures, milliseconds, megabytes = {}, {}, 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        weights = {k.removeprefix("model."): v for k, v in backbone.model.state_dict().items()}
        torch.save(weights, folder / "weights.pt")
        names = list_categories(samples)
        tested = {name: select(samples, category=name, subset="test") for name in names}
        request = {
            "backbone": params.model.backbone,
            "layers": layers,
            "weights": str(folder / "weights.pt"),
            "mean": (backbone.mean / 255).tolist(),
            "std": (backbone.std / 255).tolist(),
            "input_size": params.model.input_size,
            "seed": params.seed,
            "threads": torch.get_num_threads(),
            "categories": {
                name: {
                    "normal": [
                        str(s.path.resolve())
                        for s in select(samples, category=name)
                        if s.subset in ("fit", "calibration")
                    ],
                    "test": [str(s.path.resolve()) for s in tested[name]],
                }
                for name in names
            },
        }
        (folder / "request.json").write_text(json.dumps(request))
        started_at = time.perf_counter()
        script = Path(__file__).with_name("peer.py")
        subprocess.run([interpreter, script, folder / "request.json"], check=True)
        seconds = time.perf_counter() - started_at
        for number, name in enumerate(names):
            found = np.load(folder / f"{number}.npz")
            pixels = PixelScores()
            for sample, map_ in zip(tested[name], found["maps"], strict=True):
                own = load_image(sample.path).shape
                _update(pixels, resize_map(map_, (own[0], own[1])), sample)
            labels = [sample.is_defective for sample in tested[name]]
            figures[name] = _to_figures(found["scores"].tolist(), labels, pixels)
            milliseconds[name] = float(found["milliseconds"])
            megabytes += float(found["megabytes"])
    label = f"anomalib {found['version']} PatchCore, a model a category"
    return Row(label, params.seed, figures, seconds, milliseconds, megabytes)


def render(rows: Sequence[Row], options: argparse.Namespace) -> str:
    """The tables in Markdown: means, then image AUROC / pixel AUROC / pixel AP, ms an image per category."""
    lines = [
        f"`--data {options.data.name}`, {os.cpu_count()} cores ({platform.machine()}), "
        f"torch {torch.__version__} with {torch.get_num_threads()} threads, "
        f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB",
        "",
        "| model | seed | " + " | ".join(FIGURES) + " | training s | ms an image | size MB |",
        "|---|---|" + "---|" * (len(FIGURES) + 3),
    ]
    for row in rows:
        means = " | ".join(f"{row.mean(figure):.1f}" for figure in FIGURES)
        milliseconds = np.mean(list(row.milliseconds.values()))
        cost = f"{row.train_seconds:.0f} | {milliseconds:.0f} | {row.model_mb:.1f}"
        lines.append(f"| {row.name} | {row.seed} | {means} | {cost} |")
    categories = list(rows[0].figures)
    lines += [
        "",
        "| model | seed | " + " | ".join(categories) + " |",
        "|---|---|" + "---|" * len(categories),
    ]
    for row in rows:
        cells = " | ".join(_to_cell(row, category) for category in categories)
        lines.append(f"| {row.name} | {row.seed} | {cells} |")
    return "\n".join(lines) + "\n"


def _to_cell(row: Row, category: str) -> str:
    figures = row.figures.get(category)
    if figures is None:
        return ""
    shown = " / ".join(
        f"{100 * figures[f]:.1f}" for f in ("image_auroc", "pixel_auroc", "pixel_ap")
    )
    return f"{shown}, {row.milliseconds[category]:.0f} ms"


def train(
    samples: Sequence[Sample], params: Params, folder: Path, cache: Path, checkpoints: Path
) -> Detector:
    """A detector fitted to the samples; its synthetic anomalies are left in `folder`."""
    normals = [s for s in samples if s.subset in ("fit", "calibration")]
    sizes = {k: params.model.zoomed_size(z) for k, z in choose_zooms(samples, params.model).items()}
    kept = Cache(cache)
    images = ResizedImages(normals, sizes, kept)
    chosen = synthetic_bank.choose_normals(normals)
    entries = synthetic_bank.draw_entries(
        params.synthesize, images, chosen, seed=params.seed, progress=False
    )
    synthetic_bank.write(folder / "bank", entries)
    return fit_detector(
        params,
        samples=samples,
        bank=synthetic_bank.read(folder / "bank"),
        provenance={},
        checkpoint_dir=checkpoints,
        cache=kept,
        on_log=_log_losses,
        progress=False,
    ).detector


def _log_losses(step: int, losses: object) -> None:
    if step % 100 == 0:
        log.info("step %d %s", step, losses)


def _fit_minutes(samples: Sequence[Sample], params: Params, options: argparse.Namespace) -> Params:
    """Params whose number of steps takes `--minutes`, told from two short trials."""
    seconds = []
    for steps in (1, 1 + _TRIAL_STEPS):
        trial = vary(params, [f"train.max_steps={steps}"])
        with tempfile.TemporaryDirectory() as temporary:
            started_at = time.perf_counter()
            folder = Path(temporary)
            train(samples, trial, folder, options.cache, folder / "checkpoint")
            seconds.append(time.perf_counter() - started_at)
    a_step = (seconds[1] - seconds[0]) / _TRIAL_STEPS
    steps = max(int((options.minutes * 60 - seconds[0]) / a_step), 1)
    known = params.train.max_steps
    log.info("%.2f s a step: at most %d steps in %s minutes", a_step, steps, options.minutes)
    return vary(params, [f"train.max_steps={min(steps, known) if known else steps}"])


def vary(params: Params, changes: Iterable[str]) -> Params:
    """Params with changes of the form `section.key=JSON`."""
    values = params.dump()
    for change in changes:
        key, _, text = change.partition("=")
        section, _, leaf = key.partition(".")
        value = json.loads(text)
        values = merge(values, {section: {leaf: value}} if leaf else {section: value})
    return Params.parse(values, origin="--set")


def select_samples(options: argparse.Namespace, params: Params) -> list[Sample]:
    """Samples of `--data`, as far as `--categories` and `--normals` keep them."""
    samples = scan_layout(
        options.data,
        calibration_fraction=params.data.calibration_fraction,
        holdout_fraction=params.data.holdout_fraction,
    )
    if options.categories:
        wanted = options.categories.split(",")
        samples = [s for s in samples if s.category in wanted]
    if options.normals is None:
        return samples
    kept = []
    for category in list_categories(samples):
        own = select(samples, category=category)
        others = [s for s in own if s.subset in ("test", "defect")]
        normals = sorted((s for s in own if s not in others), key=lambda s: s.sha256[::-1])
        kept += normals[: options.normals] + others
    return kept


def _embed(network: Network, sample: Sample, size: tuple[int, int]) -> torch.Tensor:
    image = torch.tensor(resize_image(load_image(sample.path), size))
    return network.embed(image[None]).fine


def _update(pixels: PixelScores, map_: np.ndarray, sample: Sample) -> None:
    if sample.is_defective and sample.mask is None:
        return
    mask = load_mask(sample.mask) if sample.mask else np.zeros(map_.shape, bool)
    pixels.update(map_, mask)


def _to_figures(
    scores: Sequence[float], labels: Sequence[bool], pixels: PixelScores
) -> dict[str, float]:
    found = {**image_figures(scores, labels), **pixels.compute()}
    return {
        name: float(found[name]) if isinstance(found[name], (int, float)) else float("nan")
        for name in FIGURES
    }


if __name__ == "__main__":
    main()
