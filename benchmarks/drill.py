"""Drills: kills, damaged files and odd requests, many times each, and what of it went wrong.

    python -m benchmarks.drill [--seed 0] [-k ingestion]

Repeats the tests marked `drill`, each of which says what must hold: killed work ends as without a kill,
damaged files are read whole or refused in a line, requests get their answer or their refusal. A line for each
as it ends, then the table that docs/explanation/security.md keeps. Status 1 if anything went wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter

import pytest

from benchmarks.machine import print_heading

PROCESSES = 2


class Table:
    """Collects what the tests note, as they end."""

    def __init__(self) -> None:
        self.started_at = time.monotonic()
        self.done: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print a line for a test that ended, and why one failed."""
        if report.failed:
            self.failed.append(report.nodeid)
            print(f"FAILED {report.nodeid}\n{report.longreprtext}", flush=True)
        if report.when != "call":
            return
        minutes = (time.monotonic() - self.started_at) / 60
        for what, count in report.user_properties:
            self.done[what] += int(str(count))
            self.seconds[what] += round(report.duration)
            print(f"{minutes:4.1f} min  {count:6} {what}", flush=True)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Print why a test could not be read."""
        if report.failed:
            self.failed.append(report.nodeid)
            print(report.longreprtext, flush=True)


def main() -> int:
    """Run the drills and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="other moments, other damage")
    parser.add_argument("-k", default="", help="only tests whose names hold this")
    options = parser.parse_args()
    print_heading("benchmarks.drill", threads=PROCESSES, packages=["mlflow", "dvc", "pillow"])
    table = Table()
    arguments = ["-m", "drill", "-k", options.k, "--drill", str(options.seed), "--timeout=1800"]
    code = pytest.main(
        [*arguments, "-n", str(PROCESSES), "-p", "no:terminal", "tests"], plugins=[table]
    )
    print("\n| drill | done | seconds |\n|---|---|---|")
    for what, count in sorted(table.done.items()):
        print(f"| {what} | {count} | {table.seconds[what]} |")
    minutes = (time.monotonic() - table.started_at) / 60
    worked = sum(os.times()[:4]) / 60  # with its processes, also where others used the machine
    print(f"\n{len(table.failed)} went wrong; {minutes:.1f} minutes, of a processor {worked:.1f}")
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main())
