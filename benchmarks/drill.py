"""Drills: kills, damaged files and odd requests, many times each, and what of it went wrong.

    python -m benchmarks.drill [--seed 0] [PART ...]

Repeats the tests marked `drill`, or some parts of them (`--help` names the parts). Each says what must hold:
killed work ends as without a kill, damaged files are read whole or refused in a line, requests get their
answer or their refusal. A line for each as it ends, then the table that docs/explanation/security.md keeps.
Status 1 if anything went wrong.
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
_DECISIONS = "tests/registry/test_kills.py"
PARTS = {
    "archives": "tests/sources/test_archives.py::test_damaged_archives_unpack_or_are_one_line",
    "images": "tests/test_images.py::test_two_thousand_damaged_files_end_in_an_image_error",
    "requests": "tests/serving/test_limits.py::test_mutated_requests_are_answered_or_refused",
    "load": "tests/serving/test_limits.py::test_answers_are_the_same_under_load",
    "decisions": f"{_DECISIONS}::test_a_decision_killed_anywhere_ends_as_without_a_kill",
    "registration": f"{_DECISIONS}::test_a_registration_killed_anywhere_ends_as_without_a_kill",
    "fetching": "tests/data/test_versions.py::test_kills_while_fetching_end_in_the_same_bytes",
    "moving": "tests/data/test_versions.py::test_kills_at_random_moments_change_nothing_in_the_end",
    "ingestion": "tests/ingestion/test_ingestion.py::test_kills_at_random_moments_change_nothing_in_the_end",
    "stages": "tests/stages/test_kills.py::test_kills_at_random_moments_change_no_model_and_no_figure",
}  # fmt: skip


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
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; without any: all of them"
    )
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"{', '.join(unknown)}: no part; there are {', '.join(PARTS)}")
    tests = [PARTS[part] for part in options.parts or PARTS]
    print_heading("benchmarks.drill", threads=PROCESSES, packages=["mlflow", "dvc", "pillow"])
    table = Table()
    arguments = ["-m", "drill", "--drill", str(options.seed), "--timeout=1800"]
    code = pytest.main(
        [*arguments, "-n", str(PROCESSES), "-p", "no:terminal", *tests], plugins=[table]
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
