"""Time of an image beside a training on the same machine.

    python -m benchmarks.sharing [--rounds 60]

Images of the demo set are judged one at a time, on all cores, by a detector of the preset `cpu` (with random
weights, which changes no time): alone, beside training steps of the same preset in another process of equal
priority, and beside the same after `lower_priority`, as `onenip train` and the worker of `make up` run. The
other process leads a session of its own, as under systemd or `make up`.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import torch

from benchmarks.inference import CATEGORY, build_ours
from benchmarks.machine import Spread, print_heading
from benchmarks.synthesis import load_normals
from benchmarks.training import build, step_ours
from onenip.params.presets import load_preset
from onenip.stages.process import lower_priority
from onenip.training.step import Trainee

_READY = "steps"


def train_for_ever(*, at_low_priority: bool) -> None:
    """Take training steps until killed; prints a line after the first."""
    if at_low_priority:
        lower_priority()
    params = load_preset("cpu")
    network, _, plan = build(params)
    step = step_ours(network, plan, params, Trainee)
    for number in count():
        step(number)
        if number == 0:
            print(_READY, flush=True)


@contextmanager
def training_beside(way: str) -> Iterator[None]:
    """A training in another process for the length of a block, once it takes steps."""
    command = [sys.executable, "-m", "benchmarks.sharing", "--train", way]
    # set before torch is imported, as commands do it
    env = os.environ | ({"OMP_WAIT_POLICY": "passive"} if way == "low" else {})
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == _READY:
                break
        try:
            yield
        finally:
            process.kill()


def compare(*, rounds: int) -> None:
    """Print the table."""
    detector = build_ours(load_preset("cpu"))
    images = next(iter(load_normals().values()))

    def measure() -> list[float]:
        seconds = []
        for number in range(rounds + 3):  # the first ones warm up
            started_at = time.perf_counter()
            detector.predict([images[number % len(images)]], category=CATEGORY)
            seconds.append(time.perf_counter() - started_at)
        return seconds[3:]

    found = {"alone": measure()}
    for way, title in (
        ("equal", "beside a training of equal priority"),
        ("low", "beside a training at low priority"),
    ):
        with training_beside(way):
            found[title] = measure()
    alone = Spread.of(found["alone"]).median
    print("| an image | ms, median | 10-90 % | longest | slower, median |")
    print("|---|---|---|---|---|")
    for title, seconds in found.items():
        spread = Spread.of(seconds)
        print(
            f"| {title} | {spread.show(scale=1000)} | {1000 * max(seconds):.0f} "
            f"| {spread.median / alone:.2f} x |"
        )


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--train", choices=["equal", "low"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    if options.train:
        train_for_ever(at_low_priority=options.train == "low")
        return
    threads = torch.get_num_threads()
    print_heading("benchmarks.sharing", threads=threads, packages=["torch", "timm"])
    print(f"priority of this process: {os.getpriority(os.PRIO_PROCESS, 0)}\n")
    compare(rounds=options.rounds)


if __name__ == "__main__":
    main()
