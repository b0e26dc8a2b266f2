"""Freed memory is kept for the next allocation, so that the kernel need not fill it with zeros again."""

import subprocess
import sys

import pytest

_COUNT_FAULTS = """
import resource, sys
import torch
from onenip.training.fit import _keep_freed_memory

if sys.argv[1] == "keep":
    _keep_freed_memory()

def work():
    parts = [torch.ones(10 << 20) for _ in range(4)]  # 40 MiB each, beyond what glibc keeps by itself

for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_faults(how):
    """Page faults of the same work done five times more, in a process of its own."""
    command = [sys.executable, "-c", _COUNT_FAULTS, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_kept_memory_is_handed_out_again():
    """The same work done again asks the kernel for a small part of the pages."""
    assert count_faults("keep") < 0.25 * count_faults("give back")
