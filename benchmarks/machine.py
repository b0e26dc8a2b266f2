"""What every benchmark states alike: the machine, the command, the peak, the spread."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from onenip.data.loading import count_cores

Clock = Callable[[], float]

PEAK_SIDE = 2048  # of the square float32 matrices whose product is the machine's peak


@dataclass(frozen=True)
class Spread:
    """Median, 10 % and 90 % quantile of repeated measurements, in their own unit."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(*(float(q) for q in np.quantile(values, [0.5, 0.1, 0.9])))

    def show(self, *, scale: float = 1.0, digits: int = 1) -> str:
        """Two cells of a Markdown table: the median, and 10-90 %."""
        low, high = scale * self.low, scale * self.high
        return f"{scale * self.median:.{digits}f} | {low:.{digits}f}-{high:.{digits}f}"


def choose_clock(threads: int) -> Clock:
    """Processor time where one thread works, so that other work on a shared machine hardly counts."""
    return time.process_time if threads == 1 else time.perf_counter


def print_heading(module: str, *, threads: int, packages: Sequence[str]) -> None:
    """Print the command that runs now, the hardware, and versions of packages that decide times."""
    command = " ".join(["python -m", module, *sys.argv[1:]])
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = count_cores()
    print(f"`{command}`")
    work = "1 thread, processor time" if threads == 1 else f"{threads} threads, wall time"
    print(
        f"{_name_processor()}, {cores} cores, {memory_gib:.0f} GiB; {work}; "
        f"Python {platform.python_version()}, {versions}; "
        f"load of the machine at the start {os.getloadavg()[0]:.1f}\n"
    )


def measure_peak(*, clock: Clock, rounds: int = 20) -> float:
    """Best rate of a product of two float32 matrices of `PEAK_SIDE`, in GFLOP/s, with torch's threads."""
    import torch

    a, b = torch.rand(PEAK_SIDE, PEAK_SIDE), torch.rand(PEAK_SIDE, PEAK_SIDE)
    best = np.inf
    for _ in range(rounds):
        started_at = clock()
        torch.mm(a, b)
        best = min(best, clock() - started_at)
    return 2 * PEAK_SIDE**3 / best / 1e9


def count_gflop(call: Callable[[], object]) -> float:
    """GFLOP of a call's convolutions and matrix products, as torch counts them.

    Attention counts as the matrix products that it stands for, since the fused one is not counted.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def take_turns(
    ways: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int,
    clock: Clock,
    settle: int = 0,
) -> dict[str, list[float]]:
    """Seconds of each call of each way, taking turns, so that a busy machine slows each alike.

    Args:
        ways: what is called, by name.
        rounds: timed calls of each.
        warmup: calls of each before all others, which do not count.
        clock: seconds.
        settle: calls before each timed one, which do not count: another runtime's idle threads spin for a
            while, on cores that the next one needs.
    """
    for call in ways.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            for _ in range(settle):
                call()
            started_at = clock()
            call()
            seconds[name].append(clock() - started_at)
    return seconds


def divide(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Spread of the ratios within each round."""
    return Spread.of([a / b for a, b in zip(numerators, denominators, strict=True)])


def _name_processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
