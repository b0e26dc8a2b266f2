"""All claims of speed, one after another: `make bench`.

    python -m benchmarks [--quick] [--data FOLDER] [NAME...]

Each prints its command, the hardware and a table with its spread; docs/benchmarks.md keeps the results.
`--quick` takes few rounds: to see in minutes that all of them run. Quality and scale are measured where
`--data` gives a folder in MVTec layout.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Benchmark:
    """What a module measures, and its options for few rounds."""

    title: str
    quick: tuple[str, ...]
    whole: tuple[str, ...] = ()


BENCHMARKS = {
    "synthesis": Benchmark(
        "synthetic anomalies a second, for each kind, one core", ("--images", "30")
    ),
    "training": Benchmark(
        "training steps: cached features, ours beside a plain step, share of the peak",
        ("--rounds", "2", "--threads", "1"),
    ),
    "inference": Benchmark(
        "one image, from array to verdict: beside the reference's forward, ONNX and OpenVINO",
        ("--rounds", "5"),
    ),
    "sharing": Benchmark(
        "one image while a training runs beside it, with and without lower priority",
        ("--rounds", "15"),
    ),
    "metrics": Benchmark(
        "pixel figures of many maps: time and memory",
        ("--maps", "500", "--runs", "1", "--beside", "100"),
    ),
    "registry": Benchmark(
        "requests to MLflow's server for 2, 10 and 100 categories", ("--categories", "2", "4")
    ),
    "validation": Benchmark(
        "validation of many images: time and memory",
        ("--images", "200"),
        ("--images", "1000", "10000"),
    ),
}
ON_DATA = {
    "quality": Benchmark(
        "detection quality of the default preset, beside nearest neighbours",
        ("--set", "train.max_steps=20"),
    ),
    "scale": Benchmark(
        "what more images and more categories cost: time and memory of each stage",
        ("--images", "40", "--categories", "1", "10", "--steps", "4"),
    ),
}


def main() -> int:
    """Run them, each in a process of its own; 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join([*BENCHMARKS, *ON_DATA]))
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--data", type=Path, help="images for quality and scale")
    options = parser.parse_args()
    known = BENCHMARKS | ON_DATA
    for name in options.names:
        if name not in known:
            parser.error(f"no benchmark {name!r}; there are {', '.join(known)}")
    if not options.names:
        print(
            "left out, as they need a model: soak, a server's memory, and lines, a hundred clients; "
            "see `python -m benchmarks.soak --help`"
        )
    failed = []
    for name in options.names or list(known):
        benchmark = known[name]
        print(f"\n## {name}: {benchmark.title}\n", flush=True)
        arguments = list(benchmark.quick if options.quick else benchmark.whole)
        if name in ON_DATA:
            if options.data is None:
                print("left out: give --data FOLDER")
                continue
            arguments += ["--data", str(options.data)]
        command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
