"""One image, from array to verdict: ours beside the authors' forward, ONNX Runtime and OpenVINO.

    python -m benchmarks.inference [--rounds 40] [--threads 2] [--model FOLDER]

The authors' forward is written plainly from the paper (`benchmarks.plain`, sizes of the preset
`paper-lite2`): for each image it runs all stages of the backbone on image and prompt, as one batch of two,
and the encoder on both, with attention that is not fused and a neighbour mask built by loops. It stops at the
same verdict. All ways take turns in one run, so that a busy machine slows each alike; a ratio is the median
over rounds of the ratio within a round. Batch 1, input 224 x 224. One thread is timed in processor time,
several by the wall; each runtime then has four calls of its own before the one that is timed, because the
threads of the one before spin on for a while.

The second table judges several images in one pass (`predict(..., batch_size=N)`, `serve --batch-size N`).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.machine import (
    PEAK_SIDE,
    Spread,
    choose_clock,
    count_gflop,
    divide,
    measure_peak,
    print_heading,
    take_turns,
)
from benchmarks.plain import PlainNetwork
from onenip.detector.detector import Detector
from onenip.detector.prediction import find_regions
from onenip.detector.scoring import score_maps
from onenip.inference.edge import EdgeDetector
from onenip.inference.export import export_detector
from onenip.model.network import Network
from onenip.model.refiner import upsample_logits
from onenip.params import CalibrateParams, Params
from onenip.params.presets import load_preset

SIDE_PX = 224
CATEGORY = "part"
_SETTLE = 4  # calls of a runtime before the one that is timed, with several threads
BATCHES = (1, 2, 4, 8)

Image = NDArray[np.uint8]
Judge = Callable[[Image], bool]


def build_ours(params: Params) -> Detector:
    """A detector of the preset's size; weights are random, which changes no time."""
    from onenip.model.file import DetectorSpec

    torch.manual_seed(0)
    network = Network(params.model).eval()
    spec = DetectorSpec(
        model=params.model, calibrate=CalibrateParams(), categories={}, provenance={}
    )
    empty = Detector(network, spec=spec, states={})
    rng = np.random.default_rng(0)
    normals = [rng.integers(0, 255, (SIDE_PX, SIDE_PX, 3), np.uint8) for _ in range(12)]
    return empty.add_category(CATEGORY, normals)


def judge_as_authors_code(params: Params) -> Judge:
    """The authors' way: query and prompt through the whole network, for each image."""
    torch.manual_seed(0)
    plain = PlainNetwork(Network(params.model)).eval()
    rng = np.random.default_rng(1)
    prompt = torch.tensor(rng.integers(0, 255, (1, SIDE_PX, SIDE_PX, 3), np.uint8))

    def judge(image: Image) -> bool:
        with torch.inference_mode():
            coarse = plain.embed(torch.cat([torch.tensor(image)[None], prompt]))  # [2, C, h, w]
            query = coarse[:1]
            restored = plain(query, coarse[1:])
            error = (restored - query).square().sum(1, keepdim=True).sqrt()
            size = (SIDE_PX, SIDE_PX)
            restoration = upsample_logits(error, size)
            refined = upsample_logits(plain.refiner((restored - query).abs()), size)
            fused = 0.5 * restoration + 0.5 * refined.sigmoid()
            find_regions(fused[0].numpy(), threshold=float(fused.max()))
            return float(score_maps(fused, CalibrateParams())[0]) > 0

    return judge


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, help="a trained model instead of random weights")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print_heading(
        "benchmarks.inference",
        threads=options.threads,
        packages=["torch", "timm", "onnxruntime", "openvino"],
    )
    ours = Detector.load(options.model) if options.model else build_ours(load_preset("cpu"))
    category = ours.categories[0]
    image = np.random.default_rng(2).integers(0, 255, (SIDE_PX, SIDE_PX, 3), np.uint8)

    def judge_with(model: Detector | EdgeDetector) -> Judge:
        return lambda pixels: model.predict([pixels], category=category)[0].is_anomalous

    with tempfile.TemporaryDirectory() as scratch:
        files = {
            name: export_detector(ours, Path(scratch) / "model", format=name, categories=[category])
            for name in ("onnx", "openvino")
        }
        edge = {
            name: EdgeDetector.load(file, threads=options.threads) for name, file in files.items()
        }
        judges = {
            "the authors' forward": judge_as_authors_code(load_preset("paper-lite2")),
            "ours, PyTorch": judge_with(ours),
            "ours, ONNX Runtime": judge_with(edge["onnx"]),
            "ours, OpenVINO": judge_with(edge["openvino"]),
        }
        ways = {name: partial(judge, image) for name, judge in judges.items()}
        clock = choose_clock(options.threads)
        settle = _SETTLE if options.threads > 1 else 0
        seconds = take_turns(ways, rounds=options.rounds, warmup=5, clock=clock, settle=settle)
    images = [image] * max(BATCHES)
    batched = {
        str(size): partial(ours.predict, images, category=category, batch_size=size)
        for size in BATCHES
    }
    together = take_turns(batched, rounds=max(options.rounds // 4, 2), warmup=1, clock=clock)
    base = "the authors' forward"
    peak, own = measure_peak(clock=clock), count_gflop(ways["ours, PyTorch"])
    print(f"Peak, a float32 product of {PEAK_SIDE} x {PEAK_SIDE}: {peak:.0f} GFLOP/s\n")
    print("| way | ms, median | 10-90 % | faster, median (10-90 %) | GFLOP | of the peak |")
    print("|---|---|---|---|---|---|")
    for name, taken in seconds.items():
        ratio, spread = divide(seconds[base], taken), Spread.of(taken)
        gflop = count_gflop(ways[base]) if name == base else own
        print(
            f"| {name} | {spread.show(scale=1e3)} | {ratio.median:.2f} x ({ratio.low:.2f}-{ratio.high:.2f}) "
            f"| {gflop:.2f} | {100 * gflop / spread.median / peak:.0f} % |"
        )
    print("\n| images in one pass | ms an image, median | 10-90 % | faster, median (10-90 %) |")
    print("|---|---|---|---|")
    for size, taken in together.items():
        ratio = divide(together["1"], taken)
        shown = Spread.of(taken).show(scale=1e3 / max(BATCHES))
        print(f"| {size} | {shown} | {ratio.median:.2f} x ({ratio.low:.2f}-{ratio.high:.2f}) |")


if __name__ == "__main__":
    main()
