"""Time of training steps: with and without cached features, beside a plain step, and as a share of the peak.

    python -m benchmarks.training [--rounds 12] [--threads 2]

A step takes 8 normal images, 8 synthetic anomalies and 8 prompts from the drawing of the anomalies to the
optimiser, through the very functions that `onenip train` runs, at 224 x 224. Ways take turns in one run; a
ratio is the median of the ratios within a round. One thread is timed in processor time, several by the wall.
In the second table a step of the same kind comes before each timed one, as in a training.

The first table recomputes the backbone (as far as it is used) for normal images, anomalies and prompts, where
ours recomputes it for the anomalies alone; all else is the same. EfficientNet-B4 has random weights.

The second table sets ours beside a plain step of the same size (preset `paper-lite2`), written from the paper
alone: the whole backbone for all 24 images, tokens as [N, B, D], torch's `MultiheadAttention` with its
weights returned, and so not fused, a float neighbour mask built by loops in each forward pass. Synthetic
anomalies, losses, clipping and AdamW are the same. `bf16-mixed` is `train.precision`, which pays where the
processor multiplies bfloat16 (AVX512-BF16, AMX); its share is of the float32 peak all the same.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.machine import (
    PEAK_SIDE,
    Clock,
    Spread,
    choose_clock,
    count_gflop,
    divide,
    measure_peak,
    print_heading,
    take_turns,
)
from benchmarks.plain import PlainNetwork
from benchmarks.synthesis import load_normals
from onenip.data.cache import Cache
from onenip.data.labels import GOOD
from onenip.data.manifest import scan_layout
from onenip.model.network import Network
from onenip.model.refiner import upsample_logits
from onenip.params import Params
from onenip.params.presets import load_preset, merge
from onenip.sources.demo import TRAIN
from onenip.synthesis import bank as synthetic_bank
from onenip.training.batches import Batch, BatchPlan, TrainingSet, build_training_set, embed_images
from onenip.training.fit import build_network, start_fabric
from onenip.training.loop import build_optimizer, take_step
from onenip.training.step import Trainee, dice_loss, feature_mse

BATCH_SIZE = 8
AUTHORS_SECONDS = 5.0  # the authors' loop, a step of 8 samples of the paper's size
AUTHORS_GFLOPS = 92.0  # GFLOP/s, the peak of the two cores that it ran on, at `PEAK_SIDE`
_B4 = {"backbone": "tf_efficientnet_b4", "weights": "random", "levels": [0, 1, 2, 3]}

Step = Callable[[int], None]


class Recomputing(Trainee):
    """A trainee that also computes what `TrainingSet` holds: features and matches of its normal images."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """As `Trainee.forward`."""
        network, data = self.network, self.data
        used = torch.cat([batch.indices, batch.prompts])
        features = embed_images(network, self.backbone, take_images(data, used))
        for row, index in enumerate(batch.indices.tolist() if network.uses_memory else []):
            category = data.categories[index]
            statistics = data.statistics[category]
            with torch.no_grad():
                tokens = network.average_tokens(statistics.standardize(features.fine[row][None]))
                excluded = (data.owners[category] == index)[None]
                network.match(tokens, statistics.memory, excluded=excluded)
        return super().forward(batch)


def take_images(data: TrainingSet, indices: Tensor) -> Tensor:
    """Images [B, H, W, 3] uint8 of a training set."""
    return torch.from_numpy(np.stack([data.images[i] for i in indices.tolist()]))


def build(params: Params, count: int = TRAIN) -> tuple[Network, TrainingSet, BatchPlan]:
    """A network with its backbone's weights, so many normal images of each demo category, their batches."""
    torch.manual_seed(0)
    network = build_network(params, start_fabric(params.train))
    with tempfile.TemporaryDirectory() as temporary:
        for name, images in load_normals(count).items():
            folder = Path(temporary, name, "train", GOOD)
            folder.mkdir(parents=True)
            for i, image in enumerate(images):
                Image.fromarray(image).save(folder / f"{i:03}.png")
        samples = scan_layout(Path(temporary), calibration_fraction=0, holdout_fraction=0)
        data = build_training_set(network, samples, seed=0, cache=Cache(), progress=False)
    synthesizer = synthetic_bank.build_synthesizer(
        params.synthesize, size=params.model.input_size, seed=0
    )
    plan = BatchPlan(
        data, synthesizer, batch_size=BATCH_SIZE, seed=0, prompt_choice=params.train.prompt_choice
    )
    return network, data, plan


def step_ours(network: Network, plan: BatchPlan, params: Params, kind: type[Trainee]) -> Step:
    """A step as `onenip train` takes it, from drawing to optimiser."""
    fabric = start_fabric(params.train)
    trainee, optimizer = fabric.setup(
        kind(network, plan.data, params.train), build_optimizer(network, params.train, fabric)
    )
    trainee.train()

    def take(step: int) -> None:
        rate = params.train.learning_rate
        take_step(fabric, trainee, optimizer, [plan[step]], step=step, rate=rate, seed=0)

    return take


def step_plainly(network: Network, plan: BatchPlan, params: Params) -> Step:
    """The plain step, with the same draws, losses and optimiser."""
    plain = PlainNetwork(network).train()
    plain.backbone.eval()
    trainable = [p for p in plain.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, 1e-4, weight_decay=1e-4)

    def take(step: int) -> None:
        batch = plan[step]
        with torch.no_grad():
            features = plain.embed(
                torch.cat(
                    [
                        take_images(plan.data, batch.indices),
                        batch.anomalous,
                        take_images(plan.data, batch.prompts),
                    ]
                )
            )
        queries, prompts = features[: 2 * BATCH_SIZE], features[2 * BATCH_SIZE :]
        restored = plain(queries, prompts, jitter_scale=params.train.jitter_scale)
        logits = plain.refiner((restored - queries).abs())
        size = params.model.input_size
        refined = upsample_logits(logits, size).sigmoid()
        masks = torch.cat([torch.zeros_like(batch.masks), batch.masks]).float()
        loss = feature_mse(restored, queries[:BATCH_SIZE].repeat(2, 1, 1, 1))
        loss = loss + 0.5 * dice_loss(refined, masks, overlap_weight=1)
        if not torch.isfinite(loss):
            raise ArithmeticError("the plain step diverged")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, params.train.gradient_clip)
        optimizer.step()

    return take


def count_up(step: Step) -> Callable[[], None]:
    """A call that takes the next step each time."""
    numbers = itertools.count()
    return lambda: step(next(numbers))


def compare_caching(*, rounds: int, clock: Clock) -> None:
    """Print what cached features save."""
    sizes = {
        "`paper`, EfficientNet-B4": vary(load_preset("paper"), {"model": {"weights": "random"}}),
        "`paper`, EfficientNet-lite2": load_preset("paper-lite2"),
        "`cpu`, EfficientNet-B4": vary(load_preset("cpu"), {"model": _B4}),
        "`cpu`, EfficientNet-lite2": load_preset("cpu"),
    }
    print(
        "| preset, backbone | recomputed: s, median | 10-90 % | cached: s, median | 10-90 % | saved |"
    )
    print("|---|---|---|---|---|---|")
    for name, params in sizes.items():
        network, _, plan = build(params)
        network.train()
        ways = {
            kind.__name__: count_up(step_ours(network, plan, params, kind))
            for kind in (Recomputing, Trainee)
        }
        seconds = take_turns(ways, rounds=rounds, warmup=1, clock=clock)
        slow, fast = seconds["Recomputing"], seconds["Trainee"]
        saved = 100 * (1 - divide(fast, slow).median)
        cells = (Spread.of(slow).show(digits=2), Spread.of(fast).show(digits=2), f"{saved:.0f} %")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def compare_steps(*, rounds: int, clock: Clock) -> None:
    """Print ours beside the plain step, the authors' figure, and the share of the peak."""
    params = load_preset("paper-lite2")
    network, _, plan = build(params)
    ways = {
        "plain": count_up(step_plainly(network, plan, params)),
        "ours": count_up(step_ours(network, plan, params, Trainee)),
    }
    small_params = load_preset("cpu")
    small, _, small_plan = build(small_params)
    ways["ours, preset `cpu`"] = count_up(step_ours(small, small_plan, small_params, Trainee))
    for name, size in (("ours", params), ("ours, preset `cpu`", small_params)):
        half = vary(size, {"train": {"precision": "bf16-mixed"}})
        network, _, plan = build(half)
        ways[f"{name}, `bf16-mixed`"] = count_up(step_ours(network, plan, half, Trainee))
    seconds = take_turns(ways, rounds=rounds, warmup=2, clock=clock, settle=1)
    peak = measure_peak(clock=clock)
    print(f"\nPeak, a float32 product of {PEAK_SIDE} x {PEAK_SIDE}: {peak:.0f} GFLOP/s\n")
    print(
        "| step of 8 | s, median | 10-90 % | faster (10-90 %) | samples/s | GFLOP | of the peak |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, taken in seconds.items():
        spread, ratio = Spread.of(taken), divide(seconds["plain"], taken)
        gflop = count_gflop(ways[name])
        print(
            f"| {name} | {spread.show(digits=2)} | {ratio.median:.2f} x ({ratio.low:.2f}-{ratio.high:.2f}) "
            f"| {BATCH_SIZE / spread.median:.2f} | {gflop:.0f} "
            f"| {100 * gflop / spread.median / peak:.0f} % |"
        )
    scaled = AUTHORS_SECONDS * AUTHORS_GFLOPS / peak
    print(
        f"\nThe authors' loop: {AUTHORS_SECONDS} s on cores with a peak of {AUTHORS_GFLOPS:.0f} GFLOP/s, "
        f"{scaled:.2f} s if scaled to this machine's peak."
    )
    for name in ("ours", "ours, `bf16-mixed`"):
        taken = Spread.of(seconds[name]).median
        print(
            f"{name}: {AUTHORS_SECONDS / taken:.2f} times as fast as it stands, "
            f"{scaled / taken:.2f} times when scaled."
        )


def vary(params: Params, changes: dict[str, Any]) -> Params:
    """Params with some sections' fields changed."""
    return Params.parse(merge(params.dump(), changes))


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", choices=["caching", "steps"], help="one of the two tables")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    print_heading(
        "benchmarks.training", threads=options.threads, packages=["torch", "timm", "numpy"]
    )
    clock = choose_clock(options.threads)
    if options.table != "steps":
        compare_caching(rounds=options.rounds, clock=clock)
    if options.table != "caching":
        compare_steps(rounds=options.rounds, clock=clock)


if __name__ == "__main__":
    main()
