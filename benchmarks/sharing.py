"""Time of an image beside a training on the same machine.

    python -m benchmarks.sharing [--rounds 60] [--seconds 40]

Images of the demo set are judged one at a time, on all cores, by a detector of the preset `cpu` (with random
weights, which changes no time): alone, beside training steps of the same preset in another process after
`lower_priority`, as `onenip train` and the worker of `make up` run, and beside the same at equal priority.
The other process leads a session of its own, as under systemd or `make up`. A row ends after so many images
or seconds, whichever comes first; a training needs half a minute of a core before its first step.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

import torch

from benchmarks.inference import CATEGORY, build_ours
from benchmarks.machine import Spread, print_heading
from benchmarks.synthesis import load_normals
from benchmarks.training import build, step_ours
from onenip.params.presets import load_preset
from onenip.stages.process import end_with, lower_priority
from onenip.training.step import Trainee

_READY = "steps"
_WARM_UP = 3
_IMAGES = 8  # of each category, to train on and to judge


def train_for_ever(*, parent: int, at_low_priority: bool) -> None:
    """Take a training step, say so; take more after a line from the process `parent`, until that ends."""
    end_with(parent)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the others start below, at low priority
    params = load_preset("cpu")
    network, _, plan = build(params, _IMAGES)
    if at_low_priority:
        lower_priority()
    torch.set_num_threads(threads)
    step = step_ours(network, plan, params, Trainee)
    step(0)
    print(_READY, flush=True)
    if sys.stdin.readline():
        for number in count(1):
            step(number)


@contextmanager
def training(way: str) -> Iterator[Callable[[], None]]:
    """A training in a session of its own for the length of a block; what is given lets it begin."""
    command = [sys.executable, "-m", "benchmarks.sharing", "--train", way, str(os.getpid())]
    # set before torch is imported, as commands do it
    env = os.environ | ({"OMP_WAIT_POLICY": "passive"} if way == "low" else {})
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,
    ) as process:

        def begin() -> None:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()

        assert process.stdout is not None
        try:
            while process.stdout.readline().strip() != _READY:
                assert process.poll() is None, "the training ended"
            yield begin
        finally:
            process.kill()


def compare(*, rounds: int, seconds: float) -> None:
    """Print the table."""
    detector = build_ours(load_preset("cpu"))
    images = load_normals(_IMAGES)["gear"]

    def measure() -> list[float]:
        taken: list[float] = []
        while (len(taken) < _WARM_UP + rounds and sum(taken) < seconds) or len(taken) <= _WARM_UP:
            started_at = time.perf_counter()
            detector.predict([images[len(taken) % len(images)]], category=CATEGORY)
            taken.append(time.perf_counter() - started_at)
        return taken[_WARM_UP:]

    alone: list[float] = []
    found = {}
    for way, title in (
        ("low", "beside a training at low priority"),
        ("equal", "beside a training of equal priority"),
    ):
        with training(way) as begin:
            alone += measure()
            begin()
            found[title] = measure()
    found = {"alone": alone} | found
    base = Spread.of(alone).median
    print("| an image | images | ms, median | 10-90 % | longest | slower, median |")
    print("|---|---|---|---|---|---|")
    for title, taken in found.items():
        spread = Spread.of(taken)
        print(
            f"| {title} | {len(taken)} | {spread.show(scale=1000)} | {1000 * max(taken):.0f} "
            f"| {spread.median / base:.2f} x |"
        )


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=40.0, help="of a row, at most")
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    if options.train:
        way, parent = options.train
        train_for_ever(parent=int(parent), at_low_priority=way == "low")
        return
    threads = torch.get_num_threads()
    print_heading("benchmarks.sharing", threads=threads, packages=["torch", "timm"])
    print(f"priority of this process: {os.getpriority(os.PRIO_PROCESS, 0)}\n")
    compare(rounds=options.rounds, seconds=options.seconds)


if __name__ == "__main__":
    main()
