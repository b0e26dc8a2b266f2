"""A hundred lines on one server: how long each waits for its verdict.

    python -m benchmarks.lines --model artifacts/model --data FOLDER [--lines 10 50 100] [--servers 1 2]

Each line is a client of its own that sends its next test image a while after the one before, as a camera on
a belt does, to a real `onenip serve` of the model. Servers are processes of this machine, and lines go to
them in turns. Where parts come faster than they are judged, the wait grows as long as it lasts.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import psutil

from benchmarks.machine import print_heading
from benchmarks.soak import KEY, serving
from onenip.data.manifest import list_placed


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of a model")
    parser.add_argument("--data", type=Path, required=True, help="folder in MVTec layout")
    parser.add_argument("--lines", type=int, nargs="+", default=[10, 25, 50, 100])
    parser.add_argument("--servers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--every", type=float, default=20, help="seconds between a line's parts")
    parser.add_argument("--seconds", type=float, default=60, help="of each row")
    options = parser.parse_args()
    parts = read_parts(options.data)
    print_heading("benchmarks.lines", threads=os.cpu_count() or 1, packages=["torch", "fastapi"])
    print("| servers | lines | parts a second | answered | wait, s, median | 95 % | cores |")
    print("|---" * 7 + "|")
    for servers in options.servers:
        with ExitStack() as stack:
            started = [stack.enter_context(serving(model=options.model)) for _ in range(servers)]
            for count in options.lines:
                print_row(started, parts, count, options.every, options.seconds)


def read_parts(data: Path) -> list[tuple[str, list[bytes]]]:
    """Test images of each category, as their files are, in an order that mixes labels."""
    found: dict[str, list[bytes]] = {}
    for one in list_placed(data):
        if one.split == "test":
            found.setdefault(one.category, []).append(one.path.read_bytes())
    rng = np.random.default_rng(0)
    return [(name, [own[i] for i in rng.permutation(len(own))]) for name, own in found.items()]


def print_row(
    servers: Sequence[tuple[str, psutil.Process]],
    parts: Sequence[tuple[str, list[bytes]]],
    count: int,
    every: float,
    seconds: float,
) -> None:
    """Let so many lines send for a while, and print how long they waited."""
    waits: list[float] = []
    rng = np.random.default_rng(count)
    starts = rng.uniform(0, every, count)
    before = _count_cpu_seconds(servers)
    started_at = time.monotonic()

    def run_line(number: int) -> None:
        category, own = parts[number % len(parts)]
        address = servers[number % len(servers)][0]
        due = started_at + starts[number]
        with httpx.Client(timeout=600, headers={"X-API-Key": KEY}, trust_env=False) as client:
            for turn in range(len(own)):
                if due > started_at + seconds:
                    return
                time.sleep(max(due - time.monotonic(), 0))
                answer = client.post(
                    f"{address}/predict/file",
                    files={"file": own[(number + turn) % len(own)]},
                    data={"category": category},
                )
                answer.raise_for_status()
                waits.append(time.monotonic() - due)
                due += every

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(run_line, range(count)))
    took = time.monotonic() - started_at
    cores = (_count_cpu_seconds(servers) - before) / took
    low, high = np.quantile(waits, [0.5, 0.95])
    print(
        f"| {len(servers)} | {count} | {count / every:.1f} | {len(waits) / took:.1f} "
        f"| {low:.2f} | {high:.2f} | {cores:.1f} |",
        flush=True,
    )


def _count_cpu_seconds(servers: Sequence[tuple[str, psutil.Process]]) -> float:
    """Processor time of the servers so far."""
    return sum(sum(process.cpu_times()[:2]) for _, process in servers)


if __name__ == "__main__":
    main()
