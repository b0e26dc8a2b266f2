"""What more images and more categories cost: `python -m benchmarks.scale --data FOLDER`.

Of real photographs in MVTec layout. Images: the normal ones of two categories, repeated with other framing,
light and noise, go through validation, synthesis, embedding, some steps of training with calibration, and
embedding again with 20 new images, each in a process of its own. Above 20,000 images only what training
draws is embedded, as it is drawn. Categories: the sets cut apart into 1, 10 and 100, added to a
detector without training. With --before, the stages' commands run on the same images in a checkout of
earlier code, too. One thread, processor time, since a shared machine slows the clock on the wall; memory
is the peak of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from benchmarks.machine import print_heading
from onenip.data.cache import Cache
from onenip.data.labels import GOOD
from onenip.data.manifest import Sample, list_placed, load_manifest, select
from onenip.data.outputs import OUTPUTS
from onenip.images import load_image, resize_image
from onenip.params import Params
from onenip.params.presets import load_preset, merge

SIDE = 256  # px of the table of categories, and of that of images unless told otherwise
MARGIN = 8  # a side's share by which framing differs
SETS = 2  # categories of the table of images
NEW = 20
NORMALS = 3  # of each category of the table of categories
_EMBEDDED = 20_000  # images that are embedded before they are drawn
_ROUNDS = 10


def read_photographs(data: Path) -> list[list[NDArray[np.uint8]]]:
    """Normal images [256, 256, 3] uint8 of each category of a folder, the largest sets first."""
    sets: dict[str, list[Path]] = {}
    for one in list_placed(data):
        if one.label == GOOD:
            sets.setdefault(one.category, []).append(one.path)
    ordered = sorted(sets.values(), key=len, reverse=True)
    return [[resize_image(load_image(path), (SIDE, SIDE)) for path in paths] for paths in ordered]


def write_images(
    root: Path, photographs: Sequence[Sequence[NDArray[np.uint8]]], numbers: range, side: int
) -> None:
    """Normal training images of these numbers, in turns of each set, each as of a part of its own."""
    for number in numbers:
        own = photographs[number % SETS]
        image = own[number // SETS % len(own)]
        rng = np.random.default_rng(number)
        margin = image.shape[0] // MARGIN
        top, left = rng.integers(margin, size=2)
        height, width = (length - margin for length in image.shape[:2])
        framed = resize_image(image[top : top + height, left : left + width], (side, side))
        noise = rng.normal(0, 3, framed.shape)
        changed = framed * rng.uniform(0.8, 1.1) + rng.uniform(-10, 10) + noise
        folder = root / f"set_{number % SETS}" / "train" / GOOD
        folder.mkdir(parents=True, exist_ok=True)
        kept = Image.fromarray(np.clip(changed, 0, 255).astype(np.uint8))
        kept.save(folder / f"{number:07}.jpg", quality=95)


def build_params(steps: int) -> Params:
    """The preset `cpu` for some steps."""
    values = {"train": {"max_steps": steps, "selection_trials": 1}}
    return Params.parse(merge(load_preset("cpu").dump(), values))


def run_validate(params: Params) -> dict[str, Any]:
    """Manifest of `data/`."""
    from onenip.data.validation import validate

    result = validate(
        Path("data"), OUTPUTS.manifest.parent, data=params.data, params=params.validation, workers=1
    )
    return {"usable": result.summary["usable"]}


def run_synthesize(params: Params) -> dict[str, Any]:
    """The bank of synthetic anomalies, two of each image."""
    from onenip.stages import synthesize

    done = synthesize.run(
        params, data_dir=Path("data"), manifest=OUTPUTS.manifest, out_dir=OUTPUTS.synthesis
    )
    return {"anomalies": done.count}


def run_embed(params: Params) -> dict[str, Any]:
    """Features of the images that are fitted to."""
    from onenip.training.batches import build_training_set
    from onenip.training.fit import build_network, start_fabric

    cache = Cache(OUTPUTS.cache)
    network = build_network(params, start_fabric(params.train))
    data = build_training_set(network, _read_fitted(), seed=0, cache=cache, progress=False)
    return {"embedded": cache.made[data.embedder.kind], "images": len(data.images)}


def run_train(params: Params) -> dict[str, Any]:
    """Steps of training, and calibration."""
    from onenip.synthesis import bank
    from onenip.training.fit import fit_detector

    fit_detector(
        params,
        samples=load_manifest(OUTPUTS.manifest, Path("data")),
        bank=bank.read(OUTPUTS.synthesis),
        provenance={},
        checkpoint_dir=OUTPUTS.checkpoint,
        cache=Cache(OUTPUTS.cache),
        on_log=lambda _step, _losses: None,
        progress=False,
    )
    return {}


def _read_fitted() -> list[Sample]:
    return select(load_manifest(OUTPUTS.manifest, Path("data")), subset="fit")


STAGES: dict[str, Callable[[Params], dict[str, Any]]] = {
    "validate": run_validate,
    "synthesize": run_synthesize,
    "embed": run_embed,
    "train": run_train,
}


def report_here(work: Callable[[], dict[str, Any]]) -> None:
    """Run something and print its result, processor and wall seconds and the peak memory as JSON."""
    started_at = time.perf_counter()
    before = time.process_time()
    found = work()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    found |= {
        "seconds": time.process_time() - before + children.ru_utime + children.ru_stime,
        "wall": time.perf_counter() - started_at,
        "peak_mib": int(peak.split()[1]) / 1024,
    }
    print(json.dumps(found))


def call(folder: Path, *arguments: str) -> dict[str, Any]:
    """Result of this module in a process of its own, in a folder."""
    command = [sys.executable, "-m", "benchmarks.scale", *arguments]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare_images(data: Path, counts: Sequence[int], steps: int, side: int) -> None:
    """Print time and memory of each stage for some numbers of images."""
    photographs = read_photographs(data)[:SETS]
    print(f"| images | stage | processor s | ms an image | wall s | peak MiB | |\n{'|---' * 7}|")
    for count in counts:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_images(folder / "data", photographs, range(count), side)
            embed = ["embed"] if count <= _EMBEDDED else []
            for stage in ("validate", "synthesize", *embed, "train", "validate", *embed):
                again = (folder / "again").exists()
                found = call(folder, "--stage", stage, "--steps", str(steps))
                seconds, wall, peak = (found.pop(key) for key in ("seconds", "wall", "peak_mib"))
                notes = ", ".join(f"{value} {key}" for key, value in found.items())
                title = f"{stage}, {NEW} new" if again else stage
                each = 1000 * seconds / count
                print(
                    f"| {count} | {title} | {seconds:.1f} | {each:.1f} | {wall:.0f} | {peak:.0f} | {notes} |",
                    flush=True,
                )
                if stage == "train":
                    (folder / "again").touch()
                    write_images(folder / "data", photographs, range(count, count + NEW), side)


def compare_code(checkout: Path, data: Path, counts: Sequence[int], steps: int, side: int) -> None:
    """Print processor time and memory of the stages' commands in an earlier checkout and in this one."""
    # on one core no work goes to other processes, whose time nobody would count
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    photographs = read_photographs(data)[:SETS]
    checkouts = (checkout.resolve(), Path(__file__).resolve().parents[1])
    print("| images | stage | processor s, before | now | before / now | peak MiB, before | now |")
    print("|---" * 7 + "|")
    for count in counts:
        with tempfile.TemporaryDirectory() as temporary:
            folders = [Path(temporary) / name for name in ("before", "now")]
            for folder, code in zip(folders, checkouts, strict=True):
                folder.mkdir()
                write_params(folder / "params.yaml", code, steps)
            for numbers in (range(count), range(count, count + NEW)):
                title = f", {NEW} new" if numbers.start else ""
                for folder in folders:
                    write_images(folder / "data", photographs, numbers, side)
                for stage in ("validate", "synthesize", "train"):
                    old, new = (
                        time_command(code, folder, stage)
                        for code, folder in zip(checkouts, folders, strict=True)
                    )
                    print(
                        f"| {count} | {stage}{title} | {old[0]:.1f} | {new[0]:.1f} | {old[0] / new[0]:.1f} "
                        f"| {old[1]:.0f} | {new[1]:.0f} |",
                        flush=True,
                    )


def write_params(path: Path, checkout: Path, steps: int) -> None:
    """A checkout's own preset `cpu`, for some steps."""
    time_command(checkout, path.parent, "preset", "cpu")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values["train"] |= {"max_steps": steps, "selection_trials": 1}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")


def time_command(checkout: Path, folder: Path, *arguments: str) -> tuple[float, float]:
    """Processor seconds and peak MiB of a command of a checkout's code, run in a folder."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "onenip", *arguments]
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as told:
        started = subprocess.Popen(command, cwd=folder, env=environment, stdout=told, stderr=told)
        _, status, used = os.wait4(started.pid, 0)
    if status:
        raise SystemExit(f"{checkout}: {command} failed:\n{log.read_text(encoding='utf-8')}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def compare_categories(data: Path, counts: Sequence[int]) -> None:
    """Print what loading and judging cost with some numbers of categories."""
    import torch

    from onenip.detector.detector import Detector
    from onenip.model.file import DetectorSpec
    from onenip.training.fit import build_network, start_fabric

    params = load_preset("cpu")
    images = [image for own in read_photographs(data) for image in own]
    torch.manual_seed(0)
    network = build_network(params, start_fabric(params.train)).eval()
    spec = DetectorSpec(
        model=params.model, calibrate=params.calibrate, categories={}, provenance={}
    )
    detector = Detector(network, spec=spec, states={})
    header = ("categories", "to add one, s", "model, MB", "to load, s", "of which prompts, before, s",
              "memory, MiB", "to infer the category, ms", "an image, ms", "inferred, too, ms")  # fmt: skip
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for count in counts:
            added = []
            for number in range(len(detector.categories), count):
                own = [images[(number * NORMALS + i) % len(images)] for i in range(NORMALS)]
                before = time.process_time()
                detector = detector.add_category(f"part_{number:03}", own)
                added.append(time.process_time() - before)
            detector.save(folder / "model")
            Image.fromarray(images[0]).save(folder / "image.png")
            size = sum(file.stat().st_size for file in (folder / "model").iterdir()) / 1e6
            found = call(folder, "--probe")
            cells = (f"{count}", f"{np.median(added):.2f}", f"{size:.0f}", f"{found['load']:.2f}",
                     f"{found['prompts']:.2f}", f"{found['peak_mib']:.0f}", f"{found['infer']:.1f}",
                     f"{found['named']:.1f}", f"{found['unnamed']:.1f}")  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)


def probe() -> dict[str, Any]:
    """Seconds to load `model`, and milliseconds to ask it about `image.png`."""
    from onenip.detector.category import build_state
    from onenip.detector.detector import Detector

    before = time.process_time()
    detector = Detector.load("model")
    load = time.process_time() - before
    image, name = load_image(Path("image.png")), detector.categories[0]
    states = [detector.state(category) for category in detector.categories[:5]]

    def measure(ask: Callable[[], object], rounds: int = _ROUNDS) -> float:
        ask()
        before = time.process_time()
        for _ in range(rounds):
            ask()
        return (time.process_time() - before) / rounds

    one = measure(
        lambda: [build_state(detector.folded, s.prompts, s.statistics) for s in states], rounds=1
    )
    named = measure(lambda: detector.predict([image], category=name))
    resized = resize_image(image, detector.input_size)
    ask = measure(lambda: detector.infer_category(resized))
    return {
        "load": load,
        "prompts": one / len(states) * len(detector.categories),
        "infer": 1000 * ask,
        "named": 1000 * named,
        "unnamed": 1000 * measure(lambda: detector.predict([image])),
    }


def main() -> None:
    """Print both tables; or, in a process of its own, do one stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder in MVTec layout")
    parser.add_argument("--images", type=int, nargs="*", default=[1000, 10_000])
    parser.add_argument("--categories", type=int, nargs="*", default=[1, 10, 100])
    parser.add_argument("--side", type=int, default=SIDE, help="of the images in px")
    parser.add_argument("--steps", type=int, default=100, help="of training")
    parser.add_argument(
        "--before", type=Path, help="checkout of earlier code: compare the images' stages with it"
    )
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage or options.probe:
        params = build_params(options.steps)
        report_here(lambda: STAGES[options.stage](params) if options.stage else probe())
        return
    if options.data is None:
        parser.error("give --data FOLDER")
    print_heading("benchmarks.scale", threads=1, packages=["torch", "pillow"])
    if options.before:
        compare_code(options.before, options.data, options.images, options.steps, options.side)
        return
    if options.images:
        compare_images(options.data, options.images, options.steps, options.side)
        print()
    if options.categories:
        compare_categories(options.data, options.categories)


if __name__ == "__main__":
    main()
